"""Commands of daily operation."""
