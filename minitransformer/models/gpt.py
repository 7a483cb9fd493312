"""GPT: a decoder-only language model, as in GPT-2 (Radford et al., 2019) and nanoGPT.

    tokens → embedding + positions → dropout → pre-norm blocks → layer norm → logits by the embedding table

Nothing is hidden below this page but the layers it names.
"""

import math
from dataclasses import dataclass

from minitransformer import dispatch
from minitransformer.arrays import array_module
from minitransformer.errors import InputError
from minitransformer.functional import IGNORED, Mask, split_key
from minitransformer.layers import (
    Cache,
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    LearnedPositions,
    PreNormBlock,
    SelfAttention,
    SinusoidalPositions,
)
from minitransformer.layers.attention import head_width
from minitransformer.layers.basic import DEVIATION
from minitransformer.layers.blocks import ACTIVATIONS
from minitransformer.layers.packed import PackedLinear, pack_layers
from minitransformer.models.batch import make_batch
from minitransformer.parameters import Layer, normal
from minitransformer.system.settings import check_types, reject_unknown_settings

POSITIONS = ("learned", "sinusoidal")


@reject_unknown_settings
@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-2's smallest.

    ``activation`` is ``"gelu_tanh"`` (GPT-2), ``"gelu_exact"`` (nanoGPT) or ``"relu"``; ``bias`` False leaves
    out every bias, those of the layer norms too; ``positions`` is ``"learned"`` or ``"sinusoidal"``;
    ``feed_forward_width`` is 4 · ``width`` unless given. Impossible values raise InputError.
    """

    vocabulary_size: int = 50257
    context_length: int = 1024
    layers: int = 12
    heads: int = 12
    width: int = 768
    feed_forward_width: int | None = None
    activation: str = "gelu_tanh"
    bias: bool = True
    positions: str = "learned"
    dropout: float = 0.0
    eps: float = 1e-5

    def __post_init__(self):
        check_types(self)
        for name in ("vocabulary_size", "context_length", "layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        head_width(self.width, self.heads, self.heads)
        if self.feed_forward_width is None:
            object.__setattr__(self, "feed_forward_width", 4 * self.width)
        if self.feed_forward_width < 1:
            raise InputError(f"feed_forward_width is {self.feed_forward_width}; expected at least 1")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation is {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        if self.positions not in POSITIONS:
            raise InputError(f"positions is {self.positions!r}; expected one of {', '.join(POSITIONS)}")
        if not 0 < self.eps < math.inf:
            raise InputError(f"eps is {self.eps}; expected a positive number")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; expected a number from 0 up to, not including, 1")


class GPT(Layer):
    """A GPT of the shape ``config``. A batch is a dictionary of integer arrays:

    - ``ids`` (B, T), the tokens;
    - ``targets`` (B, T), for the loss: the token that follows each; −100 where there is nothing to predict;
    - ``lengths`` (B,), if rows are padded on the right: how many tokens of each are real.

    Ids alone will do where nothing else is needed, and Hugging Face's ``input_ids`` and ``attention_mask``. A
    call returns two things, the value and the pullback: ``logits, backward = model(ids)``.
    """

    def __init__(self, config):
        self.config = config
        self.embedding = Embedding(config.vocabulary_size, config.width)
        if config.positions == "learned":
            self.positions = LearnedPositions(config.context_length, config.width)
        else:
            self.positions = SinusoidalPositions()
        self.dropout = Dropout(config.dropout)
        self.blocks = [
            PreNormBlock(
                LayerNorm(config.width, config.bias, config.eps),
                SelfAttention(config.width, config.heads, bias=config.bias, dropout=config.dropout),
                LayerNorm(config.width, config.bias, config.eps),
                FeedForward(config.width, config.feed_forward_width, config.activation, config.bias),
                Dropout(config.dropout),
            )
            for _ in range(config.layers)
        ]
        for block in self.blocks:
            for layer in (block.attention.output, block.feed_forward.output):
                # two residual additions a block: the variance of their sum must not grow with depth (GPT-2)
                layer.weight.initialise = normal(DEVIATION / math.sqrt(2 * config.layers))
        self.norm = LayerNorm(config.width, config.bias, config.eps)

    def hidden(self, batch, key=None, cache=None):
        """Return the last hidden states (B, T, D), and ``dh → None``.

        ``key`` turns dropout on. ``cache`` (from ``self.cache``, only under ``inference()``) holds what came
        before: the batch then brings the tokens that follow.
        """
        batch = self._batch(batch)
        mask, positions = self._make_mask_and_positions(batch, cache)
        embedding_key, *block_keys = split_key(key, 1 + len(self.blocks))

        x, embedding_backward = self.embedding(batch["ids"])
        # padding may lie beyond the last position: any will do there, since nothing reads it
        places = array_module(x).minimum(positions, self.config.context_length - 1)
        x, positions_backward = self.positions(x, places)
        x, dropout_backward = self.dropout(x, embedding_key)
        block_backwards = []
        for index, block in enumerate(self.blocks):
            layer_cache = None if cache is None else cache.layers[index]
            x, block_backward = block(x, mask, block_keys[index], layer_cache, positions)
            block_backwards.append(block_backward)
        h, norm_backward = self.norm(x)
        if cache is not None:
            cache.lengths = mask.kv_len

        def backward(dh):
            if not block_backwards:
                raise RuntimeError("this pullback has run already; call the model again for another")
            dx = norm_backward(dh)
            while block_backwards:
                dx = block_backwards.pop()(dx)
            embedding_backward(positions_backward(dropout_backward(dx)))

        return h, backward

    def __call__(self, batch, key=None, cache=None):
        """Return the logits (B, T, V) of the token after each, and ``dlogits → None``."""
        h, hidden_backward = self.hidden(batch, key, cache)
        logits, head_backward = self.head(h)

        def backward(dlogits):
            hidden_backward(head_backward(dlogits))

        return logits, backward

    def head(self, h):
        """Return the logits (…, V) of hidden states ``h`` (…, D), by the tied table, and ``dlogits → dh``."""
        table = self.embedding.table
        logits, call = dispatch.linear(h, table.value.T, None)

        def backward(dlogits):
            return dispatch.linear_backward(dlogits, call, add_to=(None, table.gradient.T, None))[0]

        return logits, backward

    def loss(self, batch, key=None):
        """Return ``{"tokens": total}``, the summed cross-entropy in nats, and its backward.

        ``backward({"tokens": weight})`` adds weight · gradient; with the weight 1/count the loss is the mean.
        """
        batch = self._batch(batch)
        targets = _get_targets(batch)
        h, hidden_backward = self.hidden(batch, key)
        table = self.embedding.table
        total, call = dispatch.linear_cross_entropy(h, table.value, None, targets=targets)

        def backward(weights):
            owners = (None, table.gradient, None)
            dh, _, _ = dispatch.linear_cross_entropy_backward(weights["tokens"], call, add_to=owners)
            hidden_backward(dh)

        return {"tokens": total}, backward

    @staticmethod
    def count_targets(batch):
        """Return ``{"tokens": count}``, how many targets the total of ``loss`` is a sum over."""
        return {"tokens": int((_get_targets(batch) != IGNORED).sum())}

    def cache(self, batch):
        """Return an empty key/value cache for ``batch`` rows of up to ``context_length`` tokens."""
        config, values = self.config, self.embedding.table.value
        return Cache(
            array_module(values),
            layers=config.layers,
            batch=batch,
            capacity=config.context_length,
            kv_heads=config.heads,
            head_width=head_width(config.width, config.heads, config.heads),
            dtype=values.dtype,
        )

    def for_decoding(self, dtype="float32"):
        """Return a model to generate with, a ``DecodingGPT`` whose weights are packed as ``dtype``.

        ``dtype`` is ``"float32"``, ``"bfloat16"`` or ``"int8"``. Packing takes about as long as writing some
        tokens, and the packed weights are a copy: they stay what they are now if this model changes. The
        embeddings, biases and norms are this model's own, of its type.
        """
        return DecodingGPT(self, dtype)

    def forward_flops(self, length):
        """Return the floating-point operations of a forward over ``length`` tokens.

        Two for each multiply-add of the matrix products, attention's by the full square; nothing else.
        """
        config = self.config
        block = 4 * config.width**2 + 2 * config.width * config.feed_forward_width
        products = config.layers * block + config.vocabulary_size * config.width
        return 2 * length * products + 4 * config.layers * length**2 * config.width

    def _batch(self, given):
        return make_batch(array_module(self.embedding.table.value), given)

    def _make_mask_and_positions(self, batch, cache):
        ids = batch["ids"]
        xp = array_module(ids)
        rows, length = ids.shape
        lengths = batch.get("lengths")
        if cache is None:
            if length > self.config.context_length:
                raise InputError(
                    f"a sequence of {length} tokens is longer than "
                    f"the model's {self.config.context_length} positions"
                )
            return Mask(length if lengths is None else lengths), xp.arange(length)
        kv_len = cache.compute_lengths(xp.full(rows, length) if lengths is None else lengths)
        return Mask(kv_len, 0, cache.lengths), cache.lengths[:, None] + xp.arange(length)


class DecodingGPT(GPT):
    """A GPT with packed weights, as ``GPT.for_decoding`` returns it, to be called under ``inference()``.

    It is read-only: optimisers and ``save_model`` take the model that it was made from. ``parameter_count``
    is that of the model, too.
    """

    read_only = True

    def __init__(self, model, dtype):
        vars(self).update({name: pack_layers(part, dtype) for name, part in vars(model).items()})
        self.parameter_count = model.parameter_count  # packed weights are no parameters of this one
        self.logits = PackedLinear(model.embedding.table.value.T, None, dtype)

    def head(self, h):
        """Return the logits (…, V) of hidden states ``h`` (…, D), by the packed table, and no pullback."""
        return self.logits(h)

    def loss(self, batch, key=None):
        """Raise RuntimeError."""
        raise RuntimeError("a model for decoding has no loss: call that of the model that it was made from")

    def for_decoding(self, dtype="float32"):
        """Raise RuntimeError."""
        raise RuntimeError("these weights are packed: call for_decoding of the model that they came from")


def _get_targets(batch):
    if "targets" not in batch:
        raise InputError(
            "the batch has no targets; give {'ids': …, 'targets': …}: for each token the one that follows"
        )
    return batch["targets"]
