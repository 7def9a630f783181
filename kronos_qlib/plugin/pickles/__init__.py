"""Pickles of older runs, read without running anything that their writer put there."""
