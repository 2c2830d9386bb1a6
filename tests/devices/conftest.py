"""What pretends to be a device has to come before torch, in a process of its own."""

collect_ignore = ["pretended.py", "scenarios.py", "command.py"]
