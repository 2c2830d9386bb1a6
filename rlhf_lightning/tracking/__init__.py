"""MLflow tracking of runs: parameters, metrics and files. MLflow is imported late."""
