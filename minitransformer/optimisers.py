"""AdamW, clipping by global norm, and the learning-rate schedule: each a pass over the flat buffers."""

import math

import numpy as np

from minitransformer.arrays import aligned_zeros, array_module

CHUNK = 2**15  # entries: the five buffers of a chunk stay in a core's second-level cache


class AdamW:
    """Adam with decoupled weight decay (Kingma & Ba, arXiv 1412.6980; Loshchilov & Hutter, 1711.05101).

        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
        w ← w − η (m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε) + λ w)

    The decay λ applies to the parameters that were declared with it: by default matrices and tables, not
    biases and gains.
    """

    def __init__(self, model, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        self.flat = model.flat
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        xp = array_module(self.flat.values)
        size, dtype = self.flat.values.size, self.flat.values.dtype
        self.first_moment = aligned_zeros(xp, size, dtype)
        self.second_moment = aligned_zeros(xp, size, dtype)
        self.steps = 0

    def step(self, learning_rate, gradient_scale=1.0):
        """Update all values by their gradients times ``gradient_scale`` (the clipping factor)."""
        self.steps += 1
        xp = array_module(self.flat.values)
        for run in self.flat.runs:
            decay = self.weight_decay if run.decays else 0.0
            chunk = CHUNK if xp is np else run.part.stop - run.part.start
            for start in range(run.part.start, run.part.stop, chunk):
                part = slice(start, min(start + chunk, run.part.stop))
                self._update(xp, part, learning_rate, decay, gradient_scale)

    def _update(self, xp, part, learning_rate, decay, gradient_scale):
        values, m, v = self.flat.values[part], self.first_moment[part], self.second_moment[part]
        beta1, beta2 = self.betas
        g = self.flat.gradients[part] * gradient_scale
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        xp.square(g, out=g)
        g *= 1 - beta2
        v += g

        denominator = xp.sqrt(v)
        denominator *= 1 / math.sqrt(1 - beta2**self.steps)
        denominator += self.eps
        update = m / denominator
        update *= learning_rate / (1 - beta1**self.steps)
        values *= 1 - learning_rate * decay
        values -= update


def global_norm(model):
    """Return the Euclidean norm of all gradients of ``model`` together."""
    gradients = model.flat.gradients
    return array_module(gradients).sqrt(gradients @ gradients)


def clip_factor(norm, max_norm):
    """Return what gradients of global norm ``norm`` are multiplied by so that it is at most ``max_norm``.

    Pascanu et al., arXiv 1211.5063; with PyTorch's 1e-6 in the denominator. A ``max_norm`` of 0 is no limit.
    """
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0


def warmup_cosine(step, *, learning_rate, min_learning_rate, warmup_steps, max_steps):
    """Return the learning rate of ``step`` (from 0): a linear rise, then half a cosine to the minimum.

    nanoGPT's: η (step + 1)/(warmup + 1) while warming up, and the minimum from ``max_steps`` on.
    """
    if step < warmup_steps:
        return learning_rate * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_learning_rate + (learning_rate - min_learning_rate) * (1 + math.cos(math.pi * progress)) / 2
