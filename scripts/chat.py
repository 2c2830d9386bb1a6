from rlhf_lightning.commands.chat import main

main()
