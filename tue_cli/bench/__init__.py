"""`tue bench`: the paper's tables, measured."""
