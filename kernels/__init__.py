"""Fused versions of pairs of ``functional``: the same signatures and meaning, at the machine's speed.

A kernel registers a predicate here, which dispatch evaluates on every call. The kernel's module is imported
only when it is needed, because Numba takes a second to load.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from minitransformer.arrays import name_of_type
from minitransformer.kernels import cpu


class Kernel(NamedTuple):
    """A fused operation: ``module`` has the pair, or what has no backward, under the definition's names.

    It gets arrays of its ``types`` as they are, half types too: its pair has the decorators
    ``forward_uncast`` and ``backward_uncast`` of ``functional.rules``, which definitions don't use directly.
    """

    types: tuple[str, ...]
    accepts: Callable  # of the definition's own arguments: True if the kernel computes this call
    module: str

    def takes(self, arrays):
        """Return True if all of ``arrays`` have one type, which is among those of the kernel."""
        types = {getattr(array, "dtype", None) for array in arrays if array is not None}
        if len(types) != 1:
            return False
        dtype = types.pop()
        return getattr(dtype, "isnative", False) and name_of_type(dtype) in self.types

    def load(self):
        """Return the module, imported."""
        return importlib.import_module(self.module)


def _on_the_cpu(accepts, file):
    return (Kernel(("float32",), accepts, f"minitransformer.kernels.cpu.{file}"),)


KERNELS = {
    "adamw": _on_the_cpu(cpu.accepts_adamw, "optimisation"),
    "add_layer_norm": _on_the_cpu(cpu.accepts_rows, "layer_norm"),
    "add_positions": _on_the_cpu(cpu.accepts_rows, "embedding"),
    "attention": _on_the_cpu(cpu.accepts_attention, "attention"),
    "dropout": _on_the_cpu(cpu.accepts_rows, "dropout"),
    "embedding": _on_the_cpu(cpu.accepts_embedding, "embedding"),
    "layer_norm": _on_the_cpu(cpu.accepts_rows, "layer_norm"),
    "linear": _on_the_cpu(cpu.accepts_linear, "linear"),
    "linear_cross_entropy": _on_the_cpu(cpu.accepts_linear_cross_entropy, "linear_cross_entropy"),
    "linear_gelu": _on_the_cpu(cpu.accepts_linear, "linear_gelu"),
    "packed_linear": _on_the_cpu(cpu.accepts_packed_linear, "packed_linear"),
    "relu": _on_the_cpu(cpu.accepts_rows, "relu"),
    "squared_norm": _on_the_cpu(cpu.accepts_flat, "optimisation"),
}
