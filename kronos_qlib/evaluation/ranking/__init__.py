"""How well a score orders the returns that follow it, and the uncertainty of that."""
