"""A composed config before anything heavy is imported: its schema, what is wrong with it, and what it amounts to."""
