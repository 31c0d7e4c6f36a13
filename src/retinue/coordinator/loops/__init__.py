"""The coordinator's loops, each named for its chore."""
