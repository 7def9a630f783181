"""Forecasts of bars as they come: what is kept of a prompt between one bar and the next."""
