"""What the commands say about themselves without importing torch: help pages, keys, lists and shell completion."""
