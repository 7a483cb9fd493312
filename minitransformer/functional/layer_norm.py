"""Layer normalisation (Ba et al., arXiv 1607.06450)."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.rules import backward, forward


class LayerNormSaved(NamedTuple):
    """What ``layer_norm_backward`` needs."""

    normalised: Any
    inverse_deviation: Any
    gain: Any
    has_bias: bool


@forward
def layer_norm(x, gain, bias, *, eps=1e-5):
    """Normalise every row to mean 0 and variance 1, then scale and shift it.

    ``x`` (…, D), ``gain`` (D,), ``bias`` (D,) or None → (…, D). The variance is the biased one (÷ D) and
    ``eps`` stands inside the root:

        x̂ = (x − mean(x)) · r,   r = 1/√(var(x) + eps),   y = gain · x̂ + bias

    Let g = dy · gain, the gradient at x̂. Since mean and r depend on x, ∂r/∂x_j = −r² x̂_j / D and

        dx = r · (g − mean(g) − x̂ · mean(g · x̂))

    The gain is *inside* both means. Over all rows, dgain = Σ dy · x̂ and dbias = Σ dy.
    """
    xp = array_module(x)
    if gain.shape != x.shape[-1:] or (bias is not None and bias.shape != gain.shape):
        raise ValueError(
            f"layer_norm: x has shape {x.shape}; expected gain and bias of shape {x.shape[-1:]}, "
            f"not {gain.shape}" + ("" if bias is None else f" and {bias.shape}")
        )
    normalised = x - x.mean(axis=-1, keepdims=True)
    variance = xp.square(normalised).mean(axis=-1, keepdims=True)
    inverse_deviation = 1 / xp.sqrt(variance + eps)
    normalised *= inverse_deviation
    y = gain * normalised
    if bias is not None:
        y += bias
    return y, LayerNormSaved(normalised, inverse_deviation, gain, bias is not None)


@backward
def layer_norm_backward(dy, saved):
    """Return ``dx, dgain, dbias``; ``dbias`` is None where there was no bias."""
    normalised = saved.normalised
    row_axes = tuple(range(dy.ndim - 1))

    product = dy * normalised
    dgain = product.sum(axis=row_axes)
    dbias = dy.sum(axis=row_axes) if saved.has_bias else None

    product *= saved.gain
    dx = dy * saved.gain
    dx -= dx.mean(axis=-1, keepdims=True)
    dx -= normalised * product.mean(axis=-1, keepdims=True)
    dx *= saved.inverse_deviation
    return dx, dgain, dbias
