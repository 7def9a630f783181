"""How well a score orders the returns that follow it, and how sure that is."""
