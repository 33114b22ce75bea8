"""`tue train` and `tue export`: weights and their graphs."""
