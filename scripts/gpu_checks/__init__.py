"""The checks of scripts/check_gpu.py: a module per section, with `check(setting)` that yields what it finds."""
