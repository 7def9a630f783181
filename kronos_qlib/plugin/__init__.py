"""The one room that knows Qlib and MLflow."""
