"""Numbered SQL files, applied in order by `storage/schema.py`."""
