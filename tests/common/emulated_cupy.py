"""A stand-in for CuPy on a machine without a GPU: its arrays live apart from NumPy's, as on a device.

It is as strict as CuPy where a CPU run would forgive: NumPy functions refuse its arrays, nothing is copied
to the host unasked, NumPy arrays are refused where device arrays belong, and only the functions and
methods named here exist (all of them do in CuPy). What it computes with is NumPy.
"""

import operator
import sys
import types

import numpy as np
import scipy.special

FUNCTIONS = (
    *("arange", "empty", "empty_like", "zeros", "zeros_like", "full", "where", "matmul", "concatenate"),
    *("exp", "log", "sqrt", "square", "tanh", "sin", "cos", "maximum", "minimum", "sum", "nonzero", "copyto"),
    "broadcast_to",
)
METHODS = (
    *("reshape", "transpose", "swapaxes", "sum", "max", "min", "mean", "astype", "copy"),
    *("any", "all", "tobytes", "fill"),
)
ATTRIBUTES = ("shape", "ndim", "size", "dtype", "nbytes", "flags")
TYPES = ("float32", "float64", "int64", "uint32", "uint64")
OPERATORS = (
    *("add", "sub", "mul", "truediv", "pow", "matmul", "and", "or", "xor", "rshift", "lshift"),
    *("lt", "le", "gt", "ge", "eq", "ne"),
)
IN_PLACE = ("iadd", "isub", "imul", "itruediv")


class ndarray:  # noqa: N801  CuPy's name
    """An array that only this module can read."""

    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, host):
        self._host = host

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_function__(self, function, *_):
        raise TypeError(f"numpy.{function.__name__} was given a device array")

    def get(self):
        """Copy to the host."""
        return self._host.copy()

    @property
    def T(self):  # noqa: N802
        return ndarray(self._host.T)

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self._host.ctypes.data)

    def __getitem__(self, index):
        return _device(self._host[_host(index)])

    def __setitem__(self, index, value):
        self._host[_host(index)] = _host(value)

    def __len__(self):
        return len(self._host)

    def __float__(self):
        return float(self._host)

    def __int__(self):
        return int(self._host)

    def __bool__(self):
        return bool(self._host)

    def __neg__(self):
        return _device(-self._host)

    def __invert__(self):
        return _device(~self._host)


def _host(value):
    """Return what NumPy computes with; refuse arrays that are not on the device."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type numpy.ndarray: copy it to the device first")
    if isinstance(value, tuple | list):
        return type(value)(map(_host, value))
    return value


def _device(value):
    if isinstance(value, tuple):
        return tuple(map(_device, value))
    return ndarray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _run_on_device(function):
    def run(*arguments, **settings):
        settings = {name: _host(value) for name, value in settings.items()}
        return _device(function(*map(_host, arguments), **settings))

    return run


def _in_place(function):
    def run(self, other):
        function(self._host, _host(other))
        return self

    return run


for _name in OPERATORS:
    _function = getattr(operator, f"__{_name}__")
    setattr(ndarray, f"__{_name}__", _run_on_device(_function))
    setattr(ndarray, f"__r{_name}__", _run_on_device(lambda a, b, _function=_function: _function(b, a)))
for _name in IN_PLACE:
    setattr(ndarray, f"__{_name}__", _in_place(getattr(operator, f"__{_name}__")))
for _name in METHODS:
    setattr(ndarray, _name, _run_on_device(getattr(np.ndarray, _name)))
for _name in ATTRIBUTES:
    setattr(ndarray, _name, property(lambda self, _name=_name: getattr(self._host, _name)))


def install(monkeypatch):
    """Make ``import cupy`` find this stand-in; return it."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray = ndarray
    cupy.is_available = lambda: True
    cupy.asarray = lambda value, dtype=None: (
        ndarray(np.array(value, dtype))
        if isinstance(value, np.ndarray)
        else _device(np.asarray(_host(value), dtype))
    )
    for name in FUNCTIONS:
        setattr(cupy, name, _run_on_device(getattr(np, name)))
    for name in TYPES:
        setattr(cupy, name, getattr(np, name))
    cupy.add = types.SimpleNamespace(at=_run_on_device(np.add.at))
    special = types.ModuleType("cupyx.scipy.special")
    special.erf = _run_on_device(scipy.special.erf)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", special)
    return cupy
