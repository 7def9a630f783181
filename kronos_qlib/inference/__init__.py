"""From bars to sampled futures."""
