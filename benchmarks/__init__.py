"""Scripts that measure what the README claims, and what they share."""
