"""`python -m rlhf_lightning`: the same as `rlhf`."""

from rlhf_lightning.commands.entry import rlhf

if __name__ == "__main__":
    rlhf()
