"""What somebody does who wants to learn from protected images all the same."""
