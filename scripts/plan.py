from rlhf_lightning.commands.plan import main

main()
