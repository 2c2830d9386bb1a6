"""The commands: rlhf-train, -pipeline, -evaluate, -export and -chat. The only place that knows Hydra."""
