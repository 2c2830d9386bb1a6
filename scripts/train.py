from rlhf_lightning.commands.train import main

main()
