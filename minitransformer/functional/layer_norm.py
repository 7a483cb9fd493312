"""Layer normalisation (Ba et al., arXiv 1607.06450)."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.rules import backward, check_gradient, forward


class LayerNormSaved(NamedTuple):
    """What ``layer_norm_backward`` needs."""

    x_hat: Any  # (…, D)
    r: Any  # (…, 1)
    gain: Any  # (D,)
    has_bias: bool


@forward
def layer_norm(x, gain, bias, *, eps=1e-5):
    """Normalise every row to mean 0 and variance 1, then scale and shift it (x̂ is ``x_hat``).

    ``x`` (…, D), ``gain`` (D,), ``bias`` (D,) or None → (…, D). The variance is the biased one (÷ D) and
    ``eps`` stands inside the root:

        x̂ = (x − mean(x)) · r,   r = 1/√(var(x) + eps),   y = gain · x̂ + bias

    Let g = dy · gain, the gradient at x̂. Since mean and r depend on x, ∂r/∂x_j = −r² x̂_j / D and

        dx = r · (g − mean(g) − x̂ · mean(g · x̂))

    The gain is *inside* both means. Over all rows, dgain = Σ dy · x̂ and dbias = Σ dy.
    """
    xp = array_module(x)
    check_layer_norm(x, gain, bias)
    x_hat = x - x.mean(axis=-1, keepdims=True)  # x − mean(x)
    variance = xp.square(x_hat).mean(axis=-1, keepdims=True)
    r = 1 / xp.sqrt(variance + eps)
    x_hat *= r  # x̂
    y = gain * x_hat  # gain · x̂
    if bias is not None:
        y += bias  # gain · x̂ + bias
    return y, LayerNormSaved(x_hat, r, gain, bias is not None)


@backward
def layer_norm_backward(dy, saved):
    """Return ``dx, dgain, dbias``; ``dbias`` is None where there was no bias."""
    x_hat, r, gain, has_bias = saved
    check_gradient("layer_norm_backward", dy, x_hat.shape)
    row_axes = tuple(range(dy.ndim - 1))

    # y = gain · x̂ + bias
    dy_x_hat = dy * x_hat
    dgain = dy_x_hat.sum(axis=row_axes)
    dbias = dy.sum(axis=row_axes) if has_bias else None
    g = dy * gain

    # x̂ = (x − mean(x)) · r
    mean_g = g.mean(axis=-1, keepdims=True)
    mean_g_x_hat = (dy_x_hat * gain).mean(axis=-1, keepdims=True)
    dx = g  # written over g:
    dx -= mean_g  # g − mean(g)
    dx -= x_hat * mean_g_x_hat  # g − mean(g) − x̂ · mean(g · x̂)
    dx *= r  # dx
    return dx, dgain, dbias


def check_layer_norm(x, gain, bias):
    """Raise ValueError unless ``gain`` and ``bias`` are as long as the rows of ``x``."""
    if gain.shape != x.shape[-1:] or (bias is not None and bias.shape != gain.shape):
        raise ValueError(
            f"layer_norm: x has shape {x.shape}; expected gain and bias of shape {x.shape[-1:]}, "
            f"not {gain.shape}" + ("" if bias is None else f" and {bias.shape}")
        )
