"""What on-policy algorithms are assembled from: scoring, credit, statistics, KL control, reward shaping."""
