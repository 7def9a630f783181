"""How good sampled paths are as forecasts, and their calibration."""
