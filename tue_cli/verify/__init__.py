"""`tue verify`: victims trained on copies and controls, and what they learned."""
