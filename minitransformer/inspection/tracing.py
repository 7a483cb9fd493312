"""``trace()``: every operation of a forward and its backward, as it runs."""

import contextlib
import sys

from minitransformer.arrays import array_module
from minitransformer.dispatch import watching


@contextlib.contextmanager
def trace(file=None):
    """Within this block print a line for every operation, and at its end what was saved in all.

    A line begins with the operation and, in brackets, the path of the layer that called it, if one did. A
    forward's line then shows the shapes of its inputs and of its output, and the bytes saved for backward; a
    backward's the Euclidean norms of the gradient of the output and of those of the inputs, in the order of
    the forward's arrays. Where a layer owns the gradient, the norm is of the sum so far. Arrays that an
    operation only refers to, such as its weight, count as saved. ``file`` is standard output unless given.

        with minitransformer.trace():
            totals, backward = model.loss(batch)
            backward({"tokens": 1.0})
    """
    printer = _Printer(sys.stdout if file is None else file)
    with watching(printer):
        yield
    printer.finish()


class _Printer:
    def __init__(self, file):
        self.file = file
        self.saved_arrays = {}

    def saw_forward(self, name, path, arrays, settings, y, saved):
        here = {}
        _collect(saved, here)
        self.saved_arrays |= here
        shapes = " ".join(_shape(array) for array in arrays)
        size = _bytes(sum(array.nbytes for array in here.values()))
        self.print(f"→ {_format_caller(name, path)}{shapes} → {_shape(y)}  saved {size}")

    def saw_backward(self, name, path, dy, saved, gradients):
        norms = " ".join(_norm(gradient) for gradient in gradients)
        self.print(f"← {_format_caller(name, path)}|dy| {_norm(dy)} → {norms}")

    def finish(self):
        total = sum(array.nbytes for array in self.saved_arrays.values())
        self.print(f"saved for backward, each array counted once: {_bytes(total)}")

    def print(self, line):
        """Print ``line``, with question marks for what the file's encoding does not have."""
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), file=self.file)


def _format_caller(name, path):
    """Return the operation and the layer that called it, as a line shows them."""
    return f"{name:<22}[{path}]  " if path else f"{name:<22}"


def _collect(saved, found):
    """Add the arrays in a nested ``saved`` to ``found``, by the addresses of their memory."""
    if isinstance(saved, tuple):
        for part in saved:
            _collect(part, found)
    elif hasattr(saved, "nbytes") and saved.ndim:
        start = saved.ctypes.data if hasattr(saved, "ctypes") else saved.data.ptr
        found[start, saved.nbytes] = saved


def _shape(array):
    return "–" if array is None else "×".join(map(str, array.shape)) or "()"


def _norm(array):
    if array is None:
        return "–"
    if not hasattr(array, "shape"):
        return f"{abs(array):.3g}"
    xp = array_module(array)
    return f"{float(xp.sqrt(xp.square(array).sum())):.3g}"


def _bytes(count):
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
