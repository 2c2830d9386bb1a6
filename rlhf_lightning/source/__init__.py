"""What classes and functions declare, read from their source without importing them (importing torch takes seconds)."""
