"""Numbers to rank a day's instruments by: from sampled paths, from past bars, and their shaping."""
