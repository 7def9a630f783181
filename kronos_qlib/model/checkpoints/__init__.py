"""Checkpoints: names, folders, the Hub, and the bounds that a file is held against."""
