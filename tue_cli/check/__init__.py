"""`tue check`: copies held against their manifest."""
