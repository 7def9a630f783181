"""Kronos as a Qlib model, and runs in MLflow: the one package that imports either."""
