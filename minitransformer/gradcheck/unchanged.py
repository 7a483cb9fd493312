"""Detection of writes: the contents of arguments and settings before a call, compared with those after."""

from dataclasses import fields, is_dataclass

import numpy as np

from minitransformer.arrays import to_numpy


class Contents:
    """A snapshot of ``named``, a dictionary of any values.

    Arrays and numbers are compared by content, within dictionaries, lists, tuples, named tuples and
    dataclasses as well; other objects by identity.
    """

    def __init__(self, named):
        self.named = named
        self.leaves = dict(self._leaves())

    def find_change(self):
        """Return the path of the first value that has changed, or None."""
        now = dict(self._leaves())
        for path in (*self.leaves, *now):
            if path not in now or path not in self.leaves or now[path] != self.leaves[path]:
                return path
        return None

    def _leaves(self):
        for name, value in self.named.items():
            yield from _leaves(value, name, ())


def _leaves(value, path, above):
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):
        yield path, (str(value.dtype), value.shape, to_numpy(value).tobytes())
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield path, (type(value), repr(value))
    elif id(value) not in above and (parts := _parts(value, path)) is not None:
        for part_path, part in parts:
            yield from _leaves(part, part_path, (*above, id(value)))
    else:
        yield path, id(value)


def _parts(value, path):
    """Return pairs of path and value of the parts of ``value``, or None if it has none."""
    if isinstance(value, dict):
        return [(f"{path}[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f"{path}.{name}", getattr(value, name)) for name in value._fields]
    if isinstance(value, list | tuple):
        return [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(f"{path}.{field.name}", getattr(value, field.name, None)) for field in fields(value)]
    return None


def copy_array(array):
    """Return a copy of ``array`` with the same memory layout."""
    return np.array(array, order="K") if isinstance(array, np.ndarray | np.generic) else array.copy()
