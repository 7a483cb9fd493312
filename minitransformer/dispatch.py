"""The one door between the layers and the maths.

Layers call the pairs named here. Each call runs a kernel where one accepts it, otherwise the definition of
``minitransformer.functional``; it tells whoever is watching (``watching``), and under ``inference`` lets go
of what backward would have needed. Whoever ran forward runs backward: the type of ``saved`` says who it was.
"""

import collections
import contextlib
import contextvars
import functools

from minitransformer import functional, kernels

_watchers = contextvars.ContextVar("watchers", default=())
_inference = contextvars.ContextVar("inference", default=False)
_reference = contextvars.ContextVar("reference", default=False)
_backwards = {}  # the type of a kernel's ``saved`` → its backward

misses = collections.Counter()
"""How often each operation that has kernels ran its definition because none accepted the call."""


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


def is_reference():
    """Return whether definitions alone run, by ``reference``."""
    return _reference.get()


@contextlib.contextmanager
def watching(watcher):
    """Within this block ``watcher`` sees every operation.

    It has two methods, called after each pass: ``saw_forward(name, arrays, settings, y, saved)`` and
    ``saw_backward(name, dy, saved, gradients)``.
    """
    with _within(_watchers, (*_watchers.get(), watcher)):
        yield watcher


def _kernel(name, arrays, settings):
    """Return the forward of a kernel that accepts the call, or None."""
    registered = kernels.KERNELS.get(name, ())
    if not registered or _reference.get():
        return None
    for kernel in registered:
        if kernel.accepts(*arrays, **settings):
            module = kernel.load()
            _backwards[module.Saved] = getattr(module, f"{name}_backward")
            return getattr(module, name)
    misses[name] += 1
    return None


def _pair(forward, backward):
    @functools.wraps(forward)
    def dispatched_forward(*arrays, **settings):
        kernel = _kernel(forward.__name__, arrays, settings)
        y, saved = (kernel or forward)(*arrays, **settings)
        if _inference.get():
            saved = None
        for watcher in _watchers.get():
            watcher.saw_forward(forward.__name__, arrays, settings, y, saved)
        return y, saved

    @functools.wraps(backward)
    def dispatched_backward(dy, saved, *, add_to=None):
        if saved is None:
            raise RuntimeError(f"{backward.__name__}: the forward ran under inference(), which saves nothing")
        gradients = _backwards.get(type(saved), backward)(dy, saved, add_to=add_to)
        for watcher in _watchers.get():
            watcher.saw_backward(forward.__name__, dy, saved, gradients)
        return gradients

    return dispatched_forward, dispatched_backward


add_layer_norm, add_layer_norm_backward = _pair(functional.add_layer_norm, functional.add_layer_norm_backward)
add_positions, add_positions_backward = _pair(functional.add_positions, functional.add_positions_backward)
add_sinusoids, add_sinusoids_backward = _pair(functional.add_sinusoids, functional.add_sinusoids_backward)
attention, attention_backward = _pair(functional.attention, functional.attention_backward)
dropout, dropout_backward = _pair(functional.dropout, functional.dropout_backward)
embedding, embedding_backward = _pair(functional.embedding, functional.embedding_backward)
layer_norm, layer_norm_backward = _pair(functional.layer_norm, functional.layer_norm_backward)
linear, linear_backward = _pair(functional.linear, functional.linear_backward)
linear_cross_entropy, linear_cross_entropy_backward = _pair(
    functional.linear_cross_entropy, functional.linear_cross_entropy_backward
)
linear_gelu, linear_gelu_backward = _pair(functional.linear_gelu, functional.linear_gelu_backward)
relu, relu_backward = _pair(functional.relu, functional.relu_backward)
