"""The pretended device must come before torch, in a separate process."""

collect_ignore = ["pretended.py", "scenarios.py", "command.py"]
