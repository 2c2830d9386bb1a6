"""A composed config before any heavy import: its schema, its checks, and the arithmetic that follows from it."""
