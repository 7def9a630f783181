"""Processes that train together: joining, starting, and sharing a network out among them."""
