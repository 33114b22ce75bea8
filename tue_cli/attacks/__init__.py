"""Ways to learn from protected images all the same."""
