"""Which column of a table is which, whatever vendors call it, and what its values mean."""
