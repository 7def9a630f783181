"""Qlib's data folders: read, written, and what is wrong with one."""
