"""AdamW, SGD and clipping by global norm: each a pass over the flat buffers."""

from minitransformer import dispatch
from minitransformer.arrays import aligned_zeros, array_module
from minitransformer.functional.optimisation import split_in_chunks
from minitransformer.parameters import check_not_read_only


class Optimiser:
    """The base class of optimisers: state in flat buffers, named by ``moments``, and a loop over parameters.

    A step calls ``update`` for the parts of the flat buffers in which all parameters have the same settings.
    """

    moments = ()

    def __init__(self, model, weight_decay):
        check_not_read_only(model, "train")
        self.flat, self.weight_decay = model.flat, weight_decay
        xp = array_module(self.flat.values)
        for name in self.moments:
            setattr(self, name, aligned_zeros(xp, self.flat.values.size, self.flat.values.dtype))
        self.steps = 0

    def step(self, learning_rate, gradient_scale=1.0):
        """Update all parameters; ``gradient_scale``, the clipping factor, multiplies the gradients."""
        self.steps += 1
        for run in self.flat.runs:
            decay = self.weight_decay if run.decays else 0.0
            self.update(run.part, learning_rate, decay, gradient_scale)


class SGD(Optimiser):
    """Stochastic gradient descent with momentum μ, as PyTorch defines it (Sutskever et al., ICML 2013).

        m ← μ m + g + λ w,   w ← w − η m

    The decay λ applies to the parameters that are declared with it.
    """

    moments = ("first_moment",)

    def __init__(self, model, momentum=0.0, weight_decay=0.0):
        super().__init__(model, weight_decay)
        self.momentum = momentum

    def update(self, part, learning_rate, decay, gradient_scale):
        """Update the entries ``part`` of the flat buffers."""
        values, gradients, moment = (
            buffer[part] for buffer in (self.flat.values, self.flat.gradients, self.first_moment)
        )
        for chunk in split_in_chunks(values):
            w, m = values[chunk], moment[chunk]
            m *= self.momentum  # μ m
            m += gradients[chunk] * gradient_scale  # μ m + g
            m += decay * w  # μ m + g + λ w
            w -= learning_rate * m  # w − η m


class AdamW(Optimiser):
    """Adam with decoupled weight decay λ: ``functional.adamw`` has the formula.

    The decay λ applies to the parameters that are declared with it: by default matrices and tables, not
    biases and gains.
    """

    moments = ("first_moment", "second_moment")

    def __init__(self, model, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(model, weight_decay)
        self.betas, self.eps = betas, eps

    def update(self, part, learning_rate, decay, gradient_scale):
        """Update the entries ``part`` of the flat buffers."""
        buffers = self.flat.values, self.flat.gradients, self.first_moment, self.second_moment
        dispatch.adamw(
            *(buffer[part] for buffer in buffers),
            steps=self.steps,
            learning_rate=learning_rate,
            betas=self.betas,
            eps=self.eps,
            weight_decay=decay,
            gradient_scale=gradient_scale,
        )


def global_norm(model):
    """Return the Euclidean norm of all gradients of ``model`` together, a number of float64."""
    gradients = model.flat.gradients
    return array_module(gradients).sqrt(dispatch.squared_norm(gradients))


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
