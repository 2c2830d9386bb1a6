"""What classes and functions say of themselves, read from their source without importing them (torch takes seconds)."""
