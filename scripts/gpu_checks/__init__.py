"""The checks of scripts/check_gpu.py: one module per section, whose `check(setting)` yields its results."""
