"""The terminal app: one Textual app over the same jobs that the command line runs.

Screens choose and paint; what is computed is computed by a job, in a thread of its own. Only here
is Textual imported.
"""
