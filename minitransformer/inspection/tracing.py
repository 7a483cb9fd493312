"""``trace()``: every operation of a forward and its backward, as it happens."""

import contextlib
import sys

from minitransformer.arrays import array_module
from minitransformer.dispatch import watching


@contextlib.contextmanager
def trace(file=None):
    """Within this block print a line for every operation, and at its end what was saved in all.

    A forward's line shows the shapes that went in and came out and the bytes saved for backward; a
    backward's the Euclidean norms of the gradient that went in and of those that came out, in the order of
    the forward's arrays. Both end with the path of the layer that called, if one did. Where a layer owns the
    gradient, the norm is of what has been added up so far.
    What an operation merely refers to, such as its weight, counts among what it saved. ``file`` is standard
    output unless given.

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
        self.print(f"→ {name:<22}{shapes} → {_shape(y)}  saved {size}", path)

    def saw_backward(self, name, path, dy, saved, gradients):
        norms = " ".join(_norm(gradient) for gradient in gradients)
        self.print(f"← {name:<22}|dy| {_norm(dy)} → {norms}", path)

    def finish(self):
        total = sum(array.nbytes for array in self.saved_arrays.values())
        self.print(f"saved for backward, each array counted once: {_bytes(total)}")

    def print(self, line, path=""):
        """Print ``line`` and ``path``, with question marks for what the file's encoding does not have."""
        line = f"{line}  {path}" if path else line
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), file=self.file)


def _collect(saved, found):
    """Add the arrays in a nested ``saved`` to ``found``, by where their memory starts."""
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
