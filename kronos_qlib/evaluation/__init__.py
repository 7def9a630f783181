"""Arrays in, numbers and figures out; knows no model."""
