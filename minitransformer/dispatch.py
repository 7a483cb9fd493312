"""The one place where layers call operations.

Layers call the pairs named here. Each call runs a kernel where one accepts it, otherwise the definition of
``minitransformer.functional``. Whoever ran forward runs backward: the forward returns both together, as a
``Call``. Watchers (``watching``) see every operation, and under ``inference`` nothing is saved. Optimisers
call their passes, which have no backward, here too.
"""

import collections
import contextlib
import contextvars
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from minitransformer import functional, kernels

_watchers = contextvars.ContextVar("watchers", default=())
_inference = contextvars.ContextVar("inference", default=False)
_reference = contextvars.ContextVar("reference", default=False)
_path = contextvars.ContextVar("path", default="")


class Call(NamedTuple):
    """What a forward leaves for its backward: who computes it, from what, and the layer that called."""

    backward: Callable
    saved: Any
    path: str


misses = collections.Counter()
"""How often each operation that has kernels ran its definition because none accepted the call."""

hits = collections.Counter()
"""How often each operation ran a kernel."""


@contextlib.contextmanager
def _within(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def inference():
    """Within this block nothing is saved for a backward pass, and caches may be used."""
    return _within(_inference, True)


def is_inference():
    """Return True within an ``inference()`` block."""
    return _inference.get()


def reference():
    """Within this block kernels are off: every operation runs its definition."""
    return _within(_reference, True)


@contextlib.contextmanager
def saving(reference):
    """Within this block operations save for a backward; kernels are off if ``reference``, else on."""
    with _within(_inference, False), _within(_reference, reference):
        yield


def is_reference():
    """Return whether definitions alone run, by ``reference``."""
    return _reference.get()


def has_cpu_kernels():
    """Return True if kernels for arrays of NumPy can run and are not off by ``reference``; loads Numba."""
    return not _reference.get() and kernels.cpu.usable()


@contextlib.contextmanager
def watching(watcher):
    """Within this block ``watcher`` sees every operation.

    It has two methods, called after each pass: ``saw_forward(name, path, arrays, settings, y, saved)`` and
    ``saw_backward(name, path, dy, saved, gradients)``. ``path`` is that of the layer that called, such as
    ``"blocks.0.attention.output"``; it is empty where the model itself did.
    """
    with _within(_watchers, (*_watchers.get(), watcher)):
        yield watcher


def in_layer(call):
    """Return the method ``call`` of a layer, run so that watchers see its operations under ``layer.path``."""

    @functools.wraps(call)
    def called(layer, *arrays, **settings):
        token = _path.set(layer.path)
        try:
            return call(layer, *arrays, **settings)
        finally:
            _path.reset(token)

    return called


def _kernel_for(name, arrays, settings):
    """Return the module of the first kernel that takes the call, or None."""
    registered = kernels.KERNELS.get(name, ())
    if not registered or _reference.get():
        return None
    for kernel in registered:
        if kernel.takes(arrays) and kernel.accepts(*arrays, **settings):
            hits[name] += 1
            return kernel.load()
    misses[name] += 1
    return None


def _single(function, watched=False):
    """Return ``function``, which has no backward; watchers see it if it is ``watched``, one of a model's."""
    name = function.__name__

    @functools.wraps(function)
    def dispatched(*arrays, **settings):
        module = _kernel_for(name, arrays, settings)
        run = function if module is None else getattr(module, name)
        y = run(*arrays, **settings)
        for watcher in _watchers.get() if watched else ():
            watcher.saw_forward(name, _path.get(), arrays, settings, y, None)
        return y

    return dispatched


def _pair_of(module, name):
    return getattr(module, name), getattr(module, f"{name}_backward")


def _pair(forward, backward):
    name = forward.__name__
    definition = forward, backward

    @functools.wraps(forward)
    def dispatched_forward(*arrays, **settings):
        module = _kernel_for(name, arrays, settings)
        run_forward, run_backward = definition if module is None else _pair_of(module, name)
        y, saved = run_forward(*arrays, **settings)
        path = _path.get()
        call = Call(run_backward, saved, path)
        if _inference.get():
            call = saved = None
        for watcher in _watchers.get():
            watcher.saw_forward(name, path, arrays, settings, y, saved)
        return y, call

    @functools.wraps(backward)
    def dispatched_backward(dy, call, *, add_to=None):
        if call is None:
            raise RuntimeError(f"{backward.__name__}: the forward ran under inference(), which saves nothing")
        gradients = call.backward(dy, call.saved, add_to=add_to)
        for watcher in _watchers.get():
            watcher.saw_backward(name, call.path, dy, call.saved, gradients)
        return gradients

    return dispatched_forward, dispatched_backward


add_layer_norm, add_layer_norm_backward = _pair(functional.add_layer_norm, functional.add_layer_norm_backward)
add_positions, add_positions_backward = _pair(functional.add_positions, functional.add_positions_backward)
add_sinusoids, add_sinusoids_backward = _pair(functional.add_sinusoids, functional.add_sinusoids_backward)
adamw = _single(functional.adamw)
attention, attention_backward = _pair(functional.attention, functional.attention_backward)
dropout, dropout_backward = _pair(functional.dropout, functional.dropout_backward)
embedding, embedding_backward = _pair(functional.embedding, functional.embedding_backward)
layer_norm, layer_norm_backward = _pair(functional.layer_norm, functional.layer_norm_backward)
linear, linear_backward = _pair(functional.linear, functional.linear_backward)
linear_cross_entropy, linear_cross_entropy_backward = _pair(
    functional.linear_cross_entropy, functional.linear_cross_entropy_backward
)
linear_gelu, linear_gelu_backward = _pair(functional.linear_gelu, functional.linear_gelu_backward)
packed_linear = _single(functional.packed_linear, watched=True)
relu, relu_backward = _pair(functional.relu, functional.relu_backward)
squared_norm = _single(functional.squared_norm)
