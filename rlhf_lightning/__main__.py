"""`python -m rlhf_lightning`: the same as `rlhf`."""

import sys

from rlhf_lightning.environment import explain_missing


def main() -> None:
    """Run it, or say which package this Python lacks and how to get it."""
    try:
        from rlhf_lightning.commands.entry import rlhf

        rlhf()
    except ImportError as error:
        if (line := explain_missing(error)) is None:
            raise
        sys.exit(f"error: {line}")


if __name__ == "__main__":
    main()
