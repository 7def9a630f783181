"""What was forecast and ordered before it came: entries that are chained by their hashes."""
