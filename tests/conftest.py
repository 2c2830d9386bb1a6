"""What holds for all tests."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of the hub's client, and for the commands that tests start
