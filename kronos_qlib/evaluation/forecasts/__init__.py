"""How good sampled paths are as forecasts, beside baselines."""
