"""The building blocks of on-policy algorithms: scoring, credit, statistics, KL control, reward shaping."""
