"""What a command does to its own process: memory, logging, exits. A library call does none of it."""
