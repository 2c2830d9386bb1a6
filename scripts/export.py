from rlhf_lightning.commands.entry import export

export()
