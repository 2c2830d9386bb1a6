from rlhf_lightning.commands.entry import pipeline

pipeline()
