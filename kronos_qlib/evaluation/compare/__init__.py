"""Runs side by side: tests, text, a page."""
