"""The commands: rlhf-train, rlhf-pipeline and rlhf-evaluate. The only place that knows Hydra."""
