"""MLflow around runs: what becomes of their parameters, metrics and files. MLflow is imported late."""
