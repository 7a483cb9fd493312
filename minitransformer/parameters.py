"""Parameters: named views into one flat buffer per model.

Constructors only declare (shape, initial value, whether it decays); ``Layer.build`` on the root allocates
one buffer for all values and one for all gradients. An optimiser step, clipping, zeroing and saving
are then each a pass over one array.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from minitransformer.arrays import ALIGNMENT, aligned_zeros, array_module, device_module
from minitransformer.dispatch import in_layer
from minitransformer.errors import InputError
from minitransformer.system.outline import Node, outline

SHOWN = (bool, int, float, str)  # settings of a layer of these types are printed with it


class Parameter:
    """An array that is learned: its ``value`` and its ``gradient``, once its model is built.

    ``initialise(random, shape)`` returns the initial value, given a ``numpy.random.Generator``; a function
    of a module, not a lambda, if the model is to be sent to another process. ``decays`` says whether weight
    decay applies; by default to every parameter of two or more dimensions.
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
        """The array itself: a view into the root's ``flat.values``. What is assigned is written there."""
        return self._view("values")

    @value.setter
    def value(self, array):
        self._write("value", self.value, array)

    @property
    def gradient(self):
        """What pullbacks have added up: a view into ``flat.gradients``, where assignments are written."""
        return self._view("gradients")

    @gradient.setter
    def gradient(self, array):
        self._write("gradient", self.gradient, array)

    def _view(self, buffer):
        if self.root is None:
            raise RuntimeError("this parameter has no memory yet: call build() on the model it belongs to")
        return getattr(self.root.flat, buffer)[self.part].reshape(self.shape)

    def _write(self, name, view, array):
        """Copy ``array`` into ``view``: ``parameter.gradient += dw`` is such an assignment, too."""
        array = array_module(view).asarray(array)
        if array.shape != self.shape:
            raise InputError(
                f"the {name} of a parameter of shape {self.shape} was assigned an array of shape "
                f"{array.shape}; to set every entry to one number, assign it to {name}[...]"
            )
        view[...] = array

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

    def __reduce__(self):
        """Copies, in this process or another, are aligned like the original: they compute the same bits."""
        return _aligned_flat, tuple(self)


class Layer:
    """Something that owns parameters, and other layers that do: as attributes, or in lists or dictionaries.

    Called, a layer returns its value and its pullback: a function from the gradient of the value to the
    gradient of every array input, in order, which adds the parameters' gradients on its way. A pullback
    is called at most once; what it returns may be shared, so nobody writes into it. A call changes nothing
    on the layer. ``path`` is the layer's place in the model that was built, such as ``"blocks.0.norm1"``.
    A ``read_only`` one has parameters of another, so it is neither trained nor saved.
    """

    path = ""
    read_only = False

    def __init_subclass__(cls, **settings):
        """Let watchers see the operations of a call under the path of the layer."""
        super().__init_subclass__(**settings)
        if "__call__" in vars(cls):
            cls.__call__ = in_layer(cls.__call__)

    def parameters(self):
        """Return ``{path: Parameter}`` in order of definition; a shared one under its first path only."""
        return dict(_find_first(self, Parameter))

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

        for path, part in _find_first(self, Layer):
            part.path = path
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

    def __repr__(self):
        return f"{type(self).__name__}({self.parameter_count():,} parameters)"

    def __str__(self):
        tree = _node("", self, "", {})
        unbuilt = any(parameter.root is None for parameter in self.parameters().values())
        return f"{outline(tree)}\n{self.parameter_count():,} parameters{', not built yet' if unbuilt else ''}"

    def zero_gradients(self):
        """Set every gradient to zero; pullbacks only ever add."""
        self.flat.gradients[...] = 0

    def parameter_count(self):
        """Return how many numbers are learned; a shared parameter counts once."""
        return sum(parameter.size for parameter in self.parameters().values())


def check_not_read_only(model, action):
    """Raise RuntimeError if ``model`` is read-only; ``action`` is what to do with the one behind it."""
    if model.read_only:
        raise RuntimeError(
            f"a {type(model).__name__} is read-only: its weights are packed copies; "
            f"{action} the model that it was made from"
        )


class Wrapper(Layer):
    """A layer that calls another one, ``layer``, in its own way. In paths it stands for that layer."""

    def __init__(self, layer):
        self.layer = layer


def normal(deviation):
    """Return an initialiser: independent normal entries of mean 0."""
    return functools.partial(_draw_normal, deviation)


def _draw_normal(deviation, random, shape):
    return random.normal(0.0, deviation, shape)


def zeros(random, shape):
    """Initialise with zeros."""
    return np.zeros(shape)


def ones(random, shape):
    """Initialise with ones."""
    return np.ones(shape)


def _aligned_flat(values, gradients, runs):
    return Flat(_aligned(values), _aligned(gradients), runs)


def _aligned(array):
    """Return ``array`` (N,), or a copy of it if its memory does not start on a 64-byte boundary."""
    xp = array_module(array)
    if xp is not np or array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned_zeros(xp, array.size, array.dtype)
    copy[...] = array
    return copy


def _find_first(layer, kind):
    """Yield the path and each part of the class ``kind`` within ``layer``; a shared one under its first."""
    seen = set()
    for path, part in _walk(layer, ""):
        if isinstance(part, kind) and id(part) not in seen:
            seen.add(id(part))
            yield path, part


def _walk(member, path):
    """Yield path and part of every layer and parameter within ``member``, in order of definition."""
    for name, part in _parts(member).items():
        place = f"{path}.{name}" if path else str(name)
        if isinstance(part, Layer | Parameter):
            yield place, part
        if isinstance(part, Wrapper):
            yield place, part.layer
        yield from _walk(part, place)


def _parts(member):
    """Return what ``member`` holds, by name, where parameters may be found: nothing if it holds none."""
    if isinstance(member, Wrapper):
        return _parts(member.layer)
    if isinstance(member, Layer):
        return {name: part for name, part in vars(member).items() if name != "flat"}
    if isinstance(member, list | tuple):
        return dict(enumerate(member))
    return member if isinstance(member, dict) else {}


def _node(name, layer, path, seen):
    """Return the ``Node`` of ``layer``; ``seen`` holds the parameters that were shown, by identity."""
    settings = [
        f"{key}={part!r}" for key, part in vars(layer).items() if isinstance(part, SHOWN) and key != "path"
    ]
    kind = type(layer).__name__ + (f"({', '.join(settings)})" if settings else "")
    parts, size, children = [], 0, []
    for key, part in _members(layer):
        place = f"{path}.{key}" if path else key
        if isinstance(part, Layer):
            children.append(_node(key, part, place, seen))
        elif seen.setdefault(id(part), place) == place:
            parts.append(f"{key} {' × '.join(map(str, part.shape))}")
            size += part.size
        else:
            parts.append(f"{key} = {seen[id(part)]}")
    return Node(name, kind, ", ".join(parts), size, tuple(children))


def _members(holder, prefix=""):
    """Yield name and value of the layers and parameters in ``holder``, its lists and dictionaries opened."""
    for key, part in _parts(holder).items():
        if isinstance(part, Layer | Parameter):
            yield f"{prefix}{key}", part
        else:
            yield from _members(part, f"{prefix}{key}.")
