"""The commands: rlhf-train, rlhf-pipeline, rlhf-evaluate and the others. The only package that knows Hydra."""
