"""One job a command: a generator of events."""
