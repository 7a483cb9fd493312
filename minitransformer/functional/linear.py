"""The affine map: y = x · weight + bias."""

from typing import Any, NamedTuple

from minitransformer.functional.rules import backward, check_gradient, forward

BLOCK = 2**20  # entries of a gradient that are computed, then added, at a time: 4 MB in float32


class LinearSaved(NamedTuple):
    """What ``linear_backward`` needs."""

    x: Any  # (…, D)
    weight: Any  # (D, F)
    has_bias: bool


@forward
def linear(x, weight, bias):
    """Return ``y = x · weight + bias``.

    ``x`` (…, D) · ``weight`` (D, F) + ``bias`` (F,) or None → (…, F).

    With rows x_n and y_n: y_nf = Σ_d x_nd weight_df + bias_f, so by the chain rule

        dx_nd      = Σ_f dy_nf weight_df   →  dx = dy · weightᵀ
        dweight_df = Σ_n x_nd dy_nf        →  dweight = xᵀ · dy   (every row adds its outer product)
        dbias_f    = Σ_n dy_nf
    """
    check_linear(x, weight, bias)
    y = flatten_rows(x) @ weight  # (N, F)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[1]), LinearSaved(x, weight, bias is not None)


@backward
def linear_backward(dy, saved, *, add_to=None):
    """Return ``dx, dweight, dbias``; ``dbias`` is None where there was no bias."""
    x, weight, has_bias = saved
    check_gradient("linear_backward", dy, (*x.shape[:-1], weight.shape[1]))
    weight_owner = add_to[1] if add_to else None
    dy_rows = flatten_rows(dy)  # (N, F)
    dx = (dy_rows @ weight.T).reshape(x.shape)
    dweight = add_product(weight_owner, flatten_rows(x).T, dy_rows)  # xᵀ · dy
    dbias = dy_rows.sum(axis=0) if has_bias else None
    return dx, dweight, dbias


def check_linear(x, weight, bias):
    """Raise ValueError unless the shapes of the arguments of ``linear`` fit."""
    if x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"linear: x has shape {x.shape} and weight {weight.shape}; "
            f"the last axis of x must be as long as the first of weight"
        )
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"linear: bias has shape {bias.shape}; expected {weight.shape[1:]}")


def flatten_rows(x):
    """Return ``x`` (…, D) as a matrix (N, D): one large product is faster than a batch of small ones."""
    return x.reshape(-1, x.shape[-1])


def add_product(owner, a, b):
    """Return ``a @ b``, or add it to ``owner``, the gradient of a parameter, and return that.

    It is added in blocks of rows, so that no temporary has the size of a large table's gradient.
    """
    if owner is None:
        return a @ b
    if not owner.flags.c_contiguous and owner.flags.f_contiguous:
        add_product(owner.T, b.T, a.T)
        return owner
    block = max(1, BLOCK // owner.shape[1])
    for start in range(0, owner.shape[0], block):
        part = slice(start, start + block)
        owner[part] += a[part] @ b
    return owner
