from rlhf_lightning.commands.entry import chat

chat()
