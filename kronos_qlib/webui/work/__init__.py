"""What the service has done for it: a queue, models in memory, uploads, kept forecasts, runs."""
