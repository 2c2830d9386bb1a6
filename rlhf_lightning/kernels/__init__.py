"""Kernels: replacements of other libraries' classes or functions that are faster or use less memory.

They compute the same numbers.

Each has a name, and `model.kernels` selects them: `auto` (those measured to be worthwhile on the present hardware),
`none`, or a list of names. `registry` lists them; `use` puts them into a network.
"""

from rlhf_lightning.kernels.registry import KERNELS, Asked, Circumstances, Kernel, chosen, read_asked

__all__ = ["KERNELS", "Asked", "Circumstances", "Kernel", "chosen", "read_asked"]
