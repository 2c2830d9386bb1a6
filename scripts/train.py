from rlhf_lightning.commands.entry import train

train()
