"""What a command does to its own process: memory, logging, exits. Library calls do none of it."""
