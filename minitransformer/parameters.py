"""Parameters: named views into one flat buffer per model.

Constructors only declare (shape, initial value, whether it decays); ``Layer.build`` on the root allocates
one buffer for all values and one for all gradients. An optimiser step, clipping, zeroing and saving
are then each a pass over one array.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from minitransformer.arrays import ALIGNMENT, aligned_zeros, device_module


class Parameter:
    """An array that is learned: its ``value`` and its ``gradient``, once its model is built.

    ``initialise(random, shape)`` returns the initial value, given a ``numpy.random.Generator``. ``decays``
    says whether weight decay applies; by default to every parameter of two or more dimensions.
    """

    def __init__(self, shape, initialise, decays=None):
        self.shape = tuple(shape)
        self.initialise = initialise
        self.decays = len(self.shape) >= 2 if decays is None else decays
        self.root, self.part = None, None

    @property
    def size(self):
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def value(self):
        """The array itself: a view into the root's ``flat.values``."""
        return self._view("values")

    @property
    def gradient(self):
        """What pullbacks have added up: a view into the root's ``flat.gradients``."""
        return self._view("gradients")

    def _view(self, buffer):
        if self.root is None:
            raise RuntimeError("this parameter has no memory yet: call build() on the model it belongs to")
        return getattr(self.root.flat, buffer)[self.part].reshape(self.shape)

    def __repr__(self):
        return f"Parameter({'×'.join(map(str, self.shape))})"


class Run(NamedTuple):
    """A stretch of the flat buffer whose parameters have the same settings."""

    part: slice
    decays: bool


class Flat(NamedTuple):
    """The buffers of a built model: ``values`` and ``gradients``, one dimension each, and their runs."""

    values: Any
    gradients: Any
    runs: tuple


class Layer:
    """Something that owns parameters, and other layers that do: as attributes, or in lists or dictionaries.

    Called, a layer returns its value and its pullback: a function from the gradient of the value to the
    gradient of every array input, in order, which adds the parameters' gradients on its way. A pullback
    is called at most once; what it returns may be shared, so nobody writes into it. A call changes nothing
    on the layer.
    """

    def parameters(self):
        """Return ``{path: Parameter}`` in order of definition; a shared one under its first path only."""
        found, seen = {}, set()
        for path, parameter in _walk(self, ""):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[path] = parameter
        return found

    def build(self, seed=0, dtype="float32", device="cpu"):
        """Allocate and initialise every parameter; return the layer.

        ``seed`` decides all initial values: the same on every device and, but for rounding, in every
        ``dtype`` (``"float32"`` or ``"float64"``); None leaves zeros, for values that are loaded next.
        ``device`` is ``"cpu"`` or ``"cuda"``. Parameters that decay come first in the buffer, the others
        after; each starts on a 64-byte boundary. Raises RuntimeError for a part of a model that was built
        as a whole: its parameters can't live in two buffers.
        """
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {dtype!r}; expected 'float32' or 'float64'")
        xp = device_module(device)
        parameters = self.parameters()
        for path, parameter in parameters.items():
            if parameter.root not in (None, self):
                raise RuntimeError(
                    f"{path} belongs to a {type(parameter.root).__name__} that was built already"
                )

        step = ALIGNMENT // np.dtype(dtype).itemsize
        runs, end = [], 0
        for decays in (True, False):
            run_start = end
            for parameter in parameters.values():
                if parameter.decays == decays:
                    parameter.root, parameter.part = self, slice(end, end + parameter.size)
                    end += -(-parameter.size // step) * step
            if end > run_start:
                runs.append(Run(slice(run_start, end), decays))
        self.flat = Flat(aligned_zeros(xp, end, dtype), aligned_zeros(xp, end, dtype), tuple(runs))

        if seed is not None:
            random = np.random.default_rng(seed)
            for parameter in parameters.values():
                initial = parameter.initialise(random, parameter.shape)
                parameter.value[...] = xp.asarray(initial, dtype)
        return self

    def __getattr__(self, name):
        if name == "flat":
            raise RuntimeError(f"this {type(self).__name__} has no memory yet: call build() first")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def zero_gradients(self):
        """Set every gradient to zero; pullbacks only ever add."""
        self.flat.gradients[...] = 0

    def parameter_count(self):
        """Return how many numbers are learned; a shared parameter counts once."""
        return sum(parameter.size for parameter in self.parameters().values())


def normal(deviation):
    """Return an initialiser: independent normal entries of mean 0."""
    return lambda random, shape: random.normal(0.0, deviation, shape)


def zeros(random, shape):
    """Initialise with zeros."""
    return np.zeros(shape)


def ones(random, shape):
    """Initialise with ones."""
    return np.ones(shape)


def _walk(member, path):
    """Yield the path and the Parameter of everything that ``member`` holds."""
    if isinstance(member, Parameter):
        yield path, member
        return
    if isinstance(member, Layer):
        parts = {name: part for name, part in vars(member).items() if name != "flat"}
    elif isinstance(member, dict):
        parts = member
    elif isinstance(member, list | tuple):
        parts = dict(enumerate(member))
    else:
        return
    for name, part in parts.items():
        yield from _walk(part, f"{path}.{name}" if path else str(name))
