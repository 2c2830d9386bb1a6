from rlhf_lightning.commands.evaluate import main

main()
