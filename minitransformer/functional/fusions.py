"""Named fusions: operations that a kernel can do in one pass, defined by the operations they fuse."""

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
from minitransformer.functional.linear import LinearSaved, add_product, linear, linear_backward, rows
from minitransformer.functional.rules import backward, forward

GELU = {"exact": (gelu_exact, gelu_exact_backward), "tanh": (gelu_tanh, gelu_tanh_backward)}


class LinearGeluSaved(NamedTuple):
    """What ``linear_gelu_backward`` needs."""

    linear: LinearSaved
    gelu: Any
    form: str


@forward
def linear_gelu(x, weight, bias, *, form):
    """Return ``GELU(x W + b)``: the first half of a feed-forward layer.

    ``x`` (…, D), ``weight`` (D, F), ``bias`` (F,) or None → (…, F). ``form`` is ``"exact"`` or ``"tanh"``.
    The gradient goes back through GELU, then through the affine map.
    """
    h, linear_saved = linear(x, weight, bias)
    y, gelu_saved = GELU[form][0](h)
    return y, LinearGeluSaved(linear_saved, gelu_saved, form)


@backward
def linear_gelu_backward(dy, saved, *, add_to=None):
    """Return ``dx, dweight, dbias``."""
    (dh,) = GELU[saved.form][1](dy, saved.gelu)
    return linear_backward(dh, saved.linear, add_to=add_to)


@forward
def add_layer_norm(x, residual, gain, bias, *, eps=1e-5):
    """Return ``layer_norm(x + residual)``: the end of a post-norm sublayer (arXiv 1706.03762, section 3.1).

    ``x`` and ``residual`` (…, D), ``gain`` (D,), ``bias`` (D,) or None → (…, D). Both terms of the sum
    receive the gradient that layer norm hands back.
    """
    if x.shape != residual.shape:
        raise ValueError(f"add_layer_norm: x has shape {x.shape} but residual {residual.shape}")
    return layer_norm(x + residual, gain, bias, eps=eps)


@backward
def add_layer_norm_backward(dy, saved: LayerNormSaved):
    """Return ``dx, dresidual, dgain, dbias``."""
    dsum, dgain, dbias = layer_norm_backward(dy, saved)
    return dsum, dsum, dgain, dbias


class LinearCrossEntropySaved(NamedTuple):
    """What ``linear_cross_entropy_backward`` needs."""

    h: Any
    table: Any
    has_bias: bool
    cross_entropy: CrossEntropySaved


@forward
def linear_cross_entropy(h, table, bias, *, targets, ignore_index=IGNORED, label_smoothing=0.0):
    """Return the summed cross-entropy of the logits ``h tableᵀ + bias``: a language model's head and loss.

    ``h`` (…, D), ``table`` (V, D), ``bias`` (V,) or None, ``targets`` as in ``cross_entropy`` → ().
    ``table`` has the layout of an embedding, so that head and embedding can share it.

    With G = dlogits of the cross-entropy: dh = G table, dtable = Gᵀ h, dbias = Σ G over rows.
    """
    logits, _ = linear(h, table.T, bias)
    total, saved = cross_entropy(
        logits, targets=targets, ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    return total, LinearCrossEntropySaved(h, table, bias is not None, saved)


@backward
def linear_cross_entropy_backward(dtotal, saved, *, add_to=None):
    """Return ``dh, dtable, dbias``."""
    (dlogits,) = cross_entropy_backward(dtotal, saved.cross_entropy)
    dlogits = rows(dlogits)
    dh = (dlogits @ saved.table).reshape(saved.h.shape)
    dtable = add_product(add_to[1] if add_to else None, dlogits.T, rows(saved.h))
    return dh, dtable, dlogits.sum(axis=0) if saved.has_bias else None
