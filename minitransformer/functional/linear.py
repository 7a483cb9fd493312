"""The affine map: y = x W + b."""

from typing import Any, NamedTuple

from minitransformer.functional.rules import backward, forward

BLOCK = 2**20  # entries of a gradient that are computed before they are added: 4 MB in float32


class LinearSaved(NamedTuple):
    """What ``linear_backward`` needs."""

    x: Any
    weight: Any
    has_bias: bool


@forward
def linear(x, weight, bias):
    """Return ``x W + b``.

    ``x`` (…, D) · ``weight`` (D, F) + ``bias`` (F) or None → (…, F).

    With rows x_n and y_n: y_nf = Σ_d x_nd W_df + b_f, so by the chain rule

        dx_nd = Σ_f dy_nf W_df   →  dx = dy Wᵀ
        dW_df = Σ_n x_nd dy_nf   →  dW = xᵀ dy   (every row adds its outer product)
        db_f  = Σ_n dy_nf
    """
    if x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"linear: x has shape {x.shape} and weight {weight.shape}; "
            f"the last axis of x must be as long as the first of weight"
        )
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"linear: bias has shape {bias.shape}; expected {weight.shape[1:]}")
    y = rows(x) @ weight
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[1]), LinearSaved(x, weight, bias is not None)


@backward
def linear_backward(dy, saved, *, add_to=None):
    """Return ``dx, dweight, dbias``; ``dbias`` is None where there was no bias."""
    weight_owner = add_to[1] if add_to else None
    dy_rows = rows(dy)
    dx = (dy_rows @ saved.weight.T).reshape(saved.x.shape)
    dweight = add_product(weight_owner, rows(saved.x).T, dy_rows)
    dbias = dy_rows.sum(axis=0) if saved.has_bias else None
    return dx, dweight, dbias


def rows(x):
    """Return ``x`` (…, D) as a matrix (N, D): one large product is faster than a batch of small ones."""
    return x.reshape(-1, x.shape[-1])


def add_product(owner, a, b):
    """Return ``a @ b``, or add it to ``owner`` and return that.

    The addition goes by blocks of rows, so that the gradient of a large table is never a temporary of
    the table's size.
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
