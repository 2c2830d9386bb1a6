"""The documentation site: what is generated for it, and how its pages are put together. See `build_docs.py`."""
