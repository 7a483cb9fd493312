"""The records by which kernels get their arguments: addresses, strides and numbers, read in place.

A kernel is a function of one address. What stands there is a ``Layout``: named numbers of eight bytes.
"""

import struct

import numpy as np
from numba.extending import register_jitable

from minitransformer.kernels.cpu.compiling import inline
from minitransformer.kernels.cpu.vectors import add_atomically

WORK = np.dtype([(name, np.int64) for name in ("counter", "scratch", "scratch_bytes")])
"""What workers share: the address of a counter of tasks, and of scratch memory, so many bytes per worker."""

MATRIX = np.dtype([(name, np.int64) for name in ("address", "row_bytes", "column_bytes")])
"""A matrix: the address of its first element, and its strides. The address is 0 if there is none."""


class Layout:
    """The names and types of a kernel's arguments, int64 unless a type is given; called, it makes a record.

    A record is an array of int64, because NumPy takes long to fill or to locate one with named fields.
    """

    def __init__(self, *fields):
        named = [(field, np.int64) if isinstance(field, str) else field for field in fields]
        self.dtype = np.dtype([*named, ("work", WORK)])
        self._packed = struct.Struct("=" + _format_of(self.dtype))
        self._zeros = [0] * len(_format_of(self.dtype))
        self._places = {name: self.dtype.fields[name][1] // 8 for name in self.dtype.names}

    def __call__(self, **fields):
        """Return a record with ``fields``, numbers or tuples of them; fields not given are 0."""
        numbers = self._zeros.copy()
        for name, value in fields.items():
            if name not in self._places:
                raise TypeError(f"there is no field {name}; expected one of {', '.join(self.dtype.names)}")
            place = self._places[name]
            if isinstance(value, tuple):
                numbers[place : place + len(value)] = value
            else:
                numbers[place] = value
        return np.frombuffer(bytearray(self._packed.pack(*numbers)), np.int64)


def _format_of(dtype):
    """Return the format by which ``struct`` packs the numbers of ``dtype``."""
    if dtype.names is None:
        return {"i": "q", "f": "d"}[dtype.kind]
    return "".join(_format_of(dtype[name]) for name in dtype.names)


def address_of(array):
    """Return the address of the first element of ``array``, or 0 for None."""
    return 0 if array is None else array.__array_interface__["data"][0]


def locate(matrix):
    """Return the fields ``MATRIX`` of a matrix, or zeros for None."""
    return (0, 0, 0) if matrix is None else (address_of(matrix), *matrix.strides)


@register_jitable
def round_up(number, unit):
    """Return the first multiple of ``unit`` that is not below ``number``."""
    return (number + unit - 1) // unit * unit


@inline
def take_task(record):
    """Return the number of a task that no other worker has taken."""
    return add_atomically(record.work.counter, 1)


@inline
def scratch_of(record, worker):
    """Return the address of a worker's scratch memory, aligned to a cache line."""
    return round_up(record.work.scratch + worker * record.work.scratch_bytes, 64)


def find_accumulator(owner, shape, *used, rows=False):
    """Return ``owner`` if a kernel can add a gradient of ``shape`` to it, or else zeros.

    It cannot if ``owner`` may share memory with arrays ``used`` at the same time, or if none of its axes is
    contiguous; with ``rows``, if the last is not.
    """
    usable = (
        isinstance(owner, np.ndarray)
        and (owner.dtype, owner.shape) == (np.float32, shape)
        and owner.itemsize in (owner.strides[-1:] if rows else owner.strides)
        and owner.flags.writeable
        and not any(array is not None and np.may_share_memory(owner, array) for array in used)
    )
    return owner if usable else np.zeros(shape, np.float32)
