"""Private names of other libraries, one module for each library; a new version may break these first.

Each is behind a small function or class that says why the public names do not do. `tests/compat` sees that no other
module uses one, and that each is there in the form that is relied on.
"""
