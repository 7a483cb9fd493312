"""What an optimiser does to flat buffers: AdamW's update, and the norm of all gradients.

Neither has a backward. Every array is (N,), and an update is written into the arrays that are given.
"""

import math

import numpy as np

from minitransformer.arrays import array_module

CHUNK = 2**15  # entries: the buffers of a chunk fit in a core's second-level cache


def adamw(
    values,
    gradients,
    first_moment,
    second_moment,
    *,
    steps,
    learning_rate,
    betas,
    eps,
    weight_decay,
    gradient_scale=1.0,
):
    """Adam with decoupled weight decay (Kingma & Ba, arXiv 1412.6980; Loshchilov & Hutter, 1711.05101).

    ``values`` w, ``gradients``, ``first_moment`` m and ``second_moment`` v are (N,). With g the gradients
    times ``gradient_scale``, the clipping factor, ``betas`` β₁ and β₂, ``learning_rate`` η, ``weight_decay``
    λ, and t the number of ``steps`` with this one, w, m and v become in place

        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
        w ← w − η (m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε) + λ w)
    """
    xp = array_module(values)
    beta1, beta2 = betas
    for part in split_in_chunks(values):
        w, m, v = values[part], first_moment[part], second_moment[part]
        g = gradients[part] * gradient_scale
        m *= beta1  # β₁ m
        m += (1 - beta1) * g  # β₁ m + (1 − β₁) g
        v *= beta2  # β₂ v
        xp.square(g, out=g)  # g²
        g *= 1 - beta2  # (1 − β₂) g²
        v += g  # β₂ v + (1 − β₂) g²

        denominator = xp.sqrt(v)  # √v
        denominator *= 1 / math.sqrt(1 - beta2**steps)  # √(v/(1 − β₂ᵗ))
        denominator += eps  # √(v/(1 − β₂ᵗ)) + ε
        change = m / denominator
        change *= learning_rate / (1 - beta1**steps)  # η m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)
        w *= 1 - learning_rate * weight_decay  # w − η λ w
        w -= change


def squared_norm(gradients):
    """Return Σ g² over all ``gradients`` (N,), in float64.

    Summed in float64 over the chunks: NumPy's float32 product of ten million entries is wrong by 4e-5.
    """
    parts = (gradients[part] for part in split_in_chunks(gradients))
    return sum((part @ part).astype(np.float64) for part in parts)


def split_in_chunks(array):
    """Return slices of ``array`` (N,), of CHUNK entries on the CPU: passes over one of them are in cache."""
    size = array.size
    chunk = CHUNK if array_module(array) is np else size
    return [slice(start, min(start + chunk, size)) for start in range(0, size, max(1, chunk))]
