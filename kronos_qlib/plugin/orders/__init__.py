"""Orders of the next day, from scores and from what is held."""
