"""Every operation as a forward and a backward written by hand, on NumPy or CuPy arrays.

Read ``linear`` first, then ``softmax``, ``layer_norm`` and ``attention``. Each pair has one form,

    y, saved = operation(array, …, setting=…)
    darray, … = operation_backward(dy, saved)

and ``rules`` holds what all of them have in common. The names in the code are those of the formulas in the
docstrings; shapes are given in the letters B, T, H, K, D, F, V. Where code works in place, a line ends with
the term that its array now holds.
"""

from minitransformer.functional.attention import attention, attention_backward, attention_weights
from minitransformer.functional.cross_entropy import IGNORED, cross_entropy, cross_entropy_backward
from minitransformer.functional.dropout import dropout, dropout_backward
from minitransformer.functional.embedding import embedding, embedding_backward
from minitransformer.functional.fusions import (
    add_layer_norm,
    add_layer_norm_backward,
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_gelu,
    linear_gelu_backward,
)
from minitransformer.functional.gelu import (
    gelu_exact,
    gelu_exact_backward,
    gelu_tanh,
    gelu_tanh_backward,
)
from minitransformer.functional.layer_norm import layer_norm, layer_norm_backward
from minitransformer.functional.linear import linear, linear_backward
from minitransformer.functional.mask import Mask, causal_mask, full_mask, visible
from minitransformer.functional.optimisation import adamw, squared_norm
from minitransformer.functional.packed_linear import PackedWeight, pack_weight, packed_linear, unpack_weight
from minitransformer.functional.philox import Key, keep_mask, random_words, split_key
from minitransformer.functional.positions import (
    add_positions,
    add_positions_backward,
    add_sinusoids,
    add_sinusoids_backward,
    sinusoidal_positions,
)
from minitransformer.functional.relu import relu, relu_backward
from minitransformer.functional.softmax import (
    log_softmax,
    log_softmax_backward,
    softmax,
    softmax_backward,
)

__all__ = [
    "IGNORED",
    "Key",
    "Mask",
    "PackedWeight",
    "adamw",
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_positions",
    "add_positions_backward",
    "add_sinusoids",
    "add_sinusoids_backward",
    "attention",
    "attention_backward",
    "attention_weights",
    "causal_mask",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "full_mask",
    "gelu_exact",
    "gelu_exact_backward",
    "gelu_tanh",
    "gelu_tanh_backward",
    "keep_mask",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_gelu",
    "linear_gelu_backward",
    "log_softmax",
    "log_softmax_backward",
    "pack_weight",
    "packed_linear",
    "random_words",
    "relu",
    "relu_backward",
    "sinusoidal_positions",
    "softmax",
    "softmax_backward",
    "split_key",
    "squared_norm",
    "unpack_weight",
    "visible",
]
