from rlhf_lightning.commands.entry import plan

plan()
