"""Fused operations, which a kernel can compute in one pass, defined by the operations they consist of."""

from typing import Any, NamedTuple

from minitransformer.functional.cross_entropy import (
    IGNORED,
    CrossEntropySaved,
    cross_entropy,
    cross_entropy_backward,
)
from minitransformer.functional.gelu import (
    gelu_exact,
    gelu_exact_backward,
    gelu_tanh,
    gelu_tanh_backward,
)
from minitransformer.functional.layer_norm import LayerNormSaved, layer_norm, layer_norm_backward
from minitransformer.functional.linear import LinearSaved, add_product, flatten_rows, linear, linear_backward
from minitransformer.functional.rules import backward, check_gradient, forward

GELU = {"exact": (gelu_exact, gelu_exact_backward), "tanh": (gelu_tanh, gelu_tanh_backward)}


class LinearGeluSaved(NamedTuple):
    """What ``linear_gelu_backward`` needs."""

    linear: LinearSaved
    gelu: Any  # of gelu_exact or gelu_tanh
    form: str


@forward
def linear_gelu(x, weight, bias, *, form):
    """Return ``GELU(h)`` with h = x · weight + bias: the first half of a feed-forward layer.

    ``x`` (…, D), ``weight`` (D, F), ``bias`` (F,) or None → (…, F). ``form`` is ``"exact"`` or ``"tanh"``.
    The gradient passes through GELU to dh, then through the affine map.
    """
    h, linear_saved = linear(x, weight, bias)
    y, gelu_saved = GELU[form][0](h)
    return y, LinearGeluSaved(linear_saved, gelu_saved, form)


@backward
def linear_gelu_backward(dy, saved, *, add_to=None):
    """Return ``dx, dweight, dbias``."""
    check_gradient("linear_gelu_backward", dy, saved.gelu.x.shape)
    (dh,) = GELU[saved.form][1](dy, saved.gelu)
    return linear_backward(dh, saved.linear, add_to=add_to)


@forward
def add_layer_norm(x, residual, gain, bias, *, eps=1e-5):
    """Return ``layer_norm(x + residual)``: the end of a post-norm sublayer (arXiv 1706.03762, section 3.1).

    ``x`` and ``residual`` (…, D), ``gain`` (D,), ``bias`` (D,) or None → (…, D). Both terms of the sum have
    its gradient: dx = dresidual = dsum, with sum = x + residual.
    """
    check_add_layer_norm(x, residual)
    return layer_norm(x + residual, gain, bias, eps=eps)


@backward
def add_layer_norm_backward(dy, saved: LayerNormSaved):
    """Return ``dx, dresidual, dgain, dbias``."""
    check_gradient("add_layer_norm_backward", dy, saved.x_hat.shape)
    dsum, dgain, dbias = layer_norm_backward(dy, saved)
    return dsum, dsum, dgain, dbias


def check_add_layer_norm(x, residual):
    """Raise ValueError unless both terms have one shape."""
    if x.shape != residual.shape:
        raise ValueError(f"add_layer_norm: x has shape {x.shape} but residual {residual.shape}")


class LinearCrossEntropySaved(NamedTuple):
    """What ``linear_cross_entropy_backward`` needs."""

    h: Any  # (…, D)
    table: Any  # (V, D)
    has_bias: bool
    cross_entropy: CrossEntropySaved


@forward
def linear_cross_entropy(h, table, bias, *, targets, ignore_index=IGNORED, label_smoothing=0.0):
    """Return the summed cross-entropy of logits = h · tableᵀ + bias: a language model's head and loss.

    ``h`` (…, D), ``table`` (V, D), ``bias`` (V,) or None, ``targets`` as in ``cross_entropy`` → ().
    ``table`` has the layout of an embedding, so that head and embedding can share it.

        dh = dlogits · table,   dtable = dlogitsᵀ · h,   dbias = Σ dlogits over rows
    """
    logits, _ = linear(h, table.T, bias)  # (…, V)
    total, saved = cross_entropy(
        logits, targets=targets, ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    return total, LinearCrossEntropySaved(h, table, bias is not None, saved)


@backward
def linear_cross_entropy_backward(dtotal, saved, *, add_to=None):
    """Return ``dh, dtable, dbias``."""
    h, table, has_bias, cross_entropy_saved = saved
    table_owner = add_to[1] if add_to else None
    (dlogits,) = cross_entropy_backward(dtotal, cross_entropy_saved)
    dlogits = flatten_rows(dlogits)  # (N, V)
    dh = (dlogits @ table).reshape(h.shape)
    dtable = add_product(table_owner, dlogits.T, flatten_rows(h))  # dlogitsᵀ · h
    dbias = dlogits.sum(axis=0) if has_bias else None
    return dh, dtable, dbias
