"""Forecasts that need no network: the last price, and walks with a forecast volatility."""
