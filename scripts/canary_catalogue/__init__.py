"""Payloads of a hostile stranger as data: what is planted, which command meets it, and what lets it fire."""
