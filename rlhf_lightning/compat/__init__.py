"""Private names of other libraries, one module per library; a new version may break these first.

Each is behind a small function or class that says why public names are not enough. `tests/compat` checks that no other
module uses one, and that each still exists in the form relied on.
"""
