"""What an author writes: Python functions that run as tasks."""
