"""Train language models from human feedback with PyTorch Lightning: SFT, reward model, PPO and DPO."""

__version__ = "0.2.0"
