"""AdamW, SGD and clipping by global norm: each a pass over the flat buffers."""

import math

import numpy as np

from minitransformer.arrays import aligned_zeros, array_module

CHUNK = 2**15  # entries: the five buffers of a chunk fit in a core's second-level cache


class Optimiser:
    """The base class of optimisers: state in flat buffers, named by ``moments``, and a loop over parameters.

    A step calls ``update`` for chunks of the flat buffers in which all parameters have the same settings.
    """

    moments = ()

    def __init__(self, model, weight_decay):
        self.flat, self.weight_decay = model.flat, weight_decay
        xp = array_module(self.flat.values)
        for name in self.moments:
            setattr(self, name, aligned_zeros(xp, self.flat.values.size, self.flat.values.dtype))
        self.steps = 0

    def step(self, learning_rate, gradient_scale=1.0):
        """Update all parameters; ``gradient_scale``, the clipping factor, multiplies the gradients."""
        self.steps += 1
        xp = array_module(self.flat.values)
        for run in self.flat.runs:
            decay = self.weight_decay if run.decays else 0.0
            chunk = CHUNK if xp is np else run.part.stop - run.part.start
            for start in range(run.part.start, run.part.stop, chunk):
                part = slice(start, min(start + chunk, run.part.stop))
                self.update(xp, part, learning_rate, decay, gradient_scale)


class SGD(Optimiser):
    """Stochastic gradient descent with momentum μ, as PyTorch defines it (Sutskever et al., ICML 2013).

        m ← μ m + g + λ w,   w ← w − η m

    The decay λ applies to the parameters that are declared with it.
    """

    moments = ("first_moment",)

    def __init__(self, model, momentum=0.0, weight_decay=0.0):
        super().__init__(model, weight_decay)
        self.momentum = momentum

    def update(self, xp, part, learning_rate, decay, gradient_scale):
        """Update the entries ``part`` of the flat buffers."""
        values, m = self.flat.values[part], self.first_moment[part]
        m *= self.momentum  # μ m
        m += self.flat.gradients[part] * gradient_scale  # μ m + g
        m += decay * values  # μ m + g + λ w
        values -= learning_rate * m  # w − η m


class AdamW(Optimiser):
    """Adam with decoupled weight decay (Kingma & Ba, arXiv 1412.6980; Loshchilov & Hutter, 1711.05101).

        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
        w ← w − η (m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε) + λ w)

    The decay λ applies to the parameters that are declared with it: by default matrices and tables, not
    biases and gains.
    """

    moments = ("first_moment", "second_moment")

    def __init__(self, model, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(model, weight_decay)
        self.betas, self.eps = betas, eps

    def update(self, xp, part, learning_rate, decay, gradient_scale):
        """Update the entries ``part`` of the flat buffers."""
        values, m, v = self.flat.values[part], self.first_moment[part], self.second_moment[part]
        beta1, beta2 = self.betas
        g = self.flat.gradients[part] * gradient_scale
        m *= beta1  # β₁ m
        m += (1 - beta1) * g  # β₁ m + (1 − β₁) g
        v *= beta2  # β₂ v
        xp.square(g, out=g)  # g²
        g *= 1 - beta2  # (1 − β₂) g²
        v += g  # β₂ v + (1 − β₂) g²

        denominator = xp.sqrt(v)  # √v
        denominator *= 1 / math.sqrt(1 - beta2**self.steps)  # √(v/(1 − β₂ᵗ))
        denominator += self.eps  # √(v/(1 − β₂ᵗ)) + ε
        change = m / denominator
        change *= learning_rate / (1 - beta1**self.steps)  # η m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)
        values *= 1 - learning_rate * decay  # w − η λ w
        values -= change


def global_norm(model):
    """Return the Euclidean norm of all gradients of ``model`` together.

    Summed in float64 over the chunks: NumPy's float32 product of ten million entries is wrong by 4e-5.
    """
    gradients = model.flat.gradients
    xp = array_module(gradients)
    chunk = CHUNK if xp is np else gradients.size
    parts = [gradients[start : start + chunk] for start in range(0, gradients.size, chunk)]
    return xp.sqrt(sum((part @ part).astype(np.float64) for part in parts))


def clip_factor(norm, max_norm):
    """Return the factor that scales gradients of global norm ``norm`` to a norm of at most ``max_norm``.

    Pascanu et al., arXiv 1211.5063; with PyTorch's 1e-6 in the denominator. ``max_norm`` 0 means no limit.
    """
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0


OPTIMISERS = ("adamw", "sgd")


def make_optimiser(model, args):
    """Return the optimiser that ``args`` (``TrainingArguments``) name, for the parameters of ``model``."""
    if args.optim == "sgd":
        return SGD(model, args.momentum, args.weight_decay)
    return AdamW(model, (args.adam_beta1, args.adam_beta2), args.adam_epsilon, args.weight_decay)
