"""The model in force: registered in MLflow, with all that scoring needs."""
