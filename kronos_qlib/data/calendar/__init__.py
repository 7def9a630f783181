"""Times: the five time fields, exchanges, and how a past goes on."""
