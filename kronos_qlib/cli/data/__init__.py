"""Commands of `kronos-qlib data`: from bars to a Qlib folder, and to a table."""
