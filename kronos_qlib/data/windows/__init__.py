"""Windows of bars: which exist, where their bars are, how they are normalised."""
