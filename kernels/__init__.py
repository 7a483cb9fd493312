"""The pairs of ``functional`` once more, fused: the same signatures and meaning, at the machine's speed.

A kernel registers a predicate here. Dispatch asks it on every call, and imports what computes only when it is
needed: Numba takes a second to load.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from minitransformer.kernels import cpu


class Kernel(NamedTuple):
    """A fused operation: ``module`` has the pair by the definition's names, and its type ``Saved``."""

    accepts: Callable  # of the definition's own arguments: True if the kernel computes this call
    module: str

    def load(self):
        """Return the module, imported."""
        return importlib.import_module(self.module)


KERNELS = {
    "attention": (Kernel(cpu.accepts_attention, "minitransformer.kernels.cpu.attention"),),
}
