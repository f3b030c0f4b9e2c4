"""Checkpoint files: writing, reading, and the model that one describes."""
