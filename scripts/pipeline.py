from rlhf_lightning.commands.pipeline import main

main()
