from rlhf_lightning.commands.export import main

main()
