"""Bars as numpy and pandas: checks, tables, calendars, windows, a synthetic market."""
