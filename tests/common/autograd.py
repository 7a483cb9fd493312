"""PyTorch's autograd as an oracle."""

import numpy as np

ROUNDING = 2.0**-24  # of float32


def norm(array):
    return np.linalg.norm(np.asarray(array, np.float64))


def assert_agree(ours, theirs, names):
    """Compare gradients, or values, in float64, tensor by tensor."""
    whole = norm([norm(array) for array in theirs])
    for name, one, other in zip(names, ours, theirs, strict=True):
        assert one.shape == other.shape, name
        error = norm(one - other) / max(norm(other), 1e-3 * whole, 1e-300)
        assert error <= 1e-10, f"{name}: {error:.1e}"


def assert_as_exact_in_float32(ours, theirs, exact, names):
    """Compare ``ours`` and ``theirs`` in float32, each with ``exact``."""
    whole = norm([norm(array) for array in exact])
    for name, one, other, right in zip(names, ours, theirs, exact, strict=True):
        assert one.dtype == np.float32, name
        allowed = 2 * max(norm(other - right), 16 * ROUNDING * max(norm(right), 1e-3 * whole))
        assert norm(one - right) <= allowed, f"{name}: {norm(one - right):.1e} > {allowed:.1e}"


def against(ours, theirs, inputs):
    """Compare ``ours`` with ``theirs``, in float64 and in float32, at ``inputs`` (``{name: array}``).

    Both are functions of ``inputs, dy`` that return y and the inputs' gradients; ``theirs`` returns the
    shape of y where dy is None.
    """
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    exact_inputs = {name: array.astype(np.float64) for name, array in inputs.items()}
    dy = np.random.default_rng(1).normal(size=theirs(exact_inputs, None)).astype(np.float32)
    exact_y, exact = theirs(exact_inputs, dy.astype(np.float64))
    y, gradients = ours(exact_inputs, dy.astype(np.float64))
    assert_agree([y], [exact_y], ["output"])
    assert_agree(gradients, exact, list(inputs))

    their_y, their_gradients = theirs(inputs, dy)
    y, gradients = ours(inputs, dy)
    assert_as_exact_in_float32([y], [their_y], [exact_y], ["output"])
    assert_as_exact_in_float32(gradients, their_gradients, exact, list(inputs))


def with_autograd(torch, function):
    """Return ``function`` of named tensors in the form that ``against`` takes."""

    def theirs(inputs, dy):
        tensors = {name: torch.tensor(array, requires_grad=True) for name, array in inputs.items()}
        y = function(tensors)
        if dy is None:
            return tuple(y.shape)
        y.backward(torch.tensor(dy))
        gradients = [t.new_zeros(t.shape) if t.grad is None else t.grad for t in tensors.values()]
        return y.detach().numpy(), [gradient.numpy() for gradient in gradients]

    return theirs
