from rlhf_lightning.commands.entry import evaluate

evaluate()
