"""The operations of ``minitransformer.functional`` in PyTorch, whose autograd is then their oracle."""

import math

import numpy as np

from common.masks import naive_visible
from minitransformer.functional import IGNORED, keep_mask


class Reference:
    """One method for each operation, of tensors, under the same name and with the same settings."""

    def __init__(self, torch):
        self.torch, self.nn = torch, torch.nn.functional

    def linear(self, x, weight, bias):
        return self.nn.linear(x, weight.T, bias)

    def softmax(self, x):
        return self.nn.softmax(x, dim=-1)

    def log_softmax(self, x):
        return self.nn.log_softmax(x, dim=-1)

    def layer_norm(self, x, gain, bias, eps=1e-5):
        return self.nn.layer_norm(x, gain.shape, gain, bias, eps)

    def add_layer_norm(self, x, residual, gain, bias, eps=1e-5):
        return self.layer_norm(x + residual, gain, bias, eps)

    def gelu_exact(self, x):
        return self.nn.gelu(x)

    def gelu_tanh(self, x):
        return self.nn.gelu(x, approximate="tanh")

    def relu(self, x):
        return self.nn.relu(x)

    def linear_gelu(self, x, weight, bias, form):
        return self.nn.gelu(self.linear(x, weight, bias), approximate={"exact": "none", "tanh": "tanh"}[form])

    def dropout(self, x, rate, key):  # theirs draws other numbers
        return x * self.torch.tensor(keep_mask(np, key, tuple(x.shape), rate)) / (1 - rate)

    def embedding(self, table, ids):
        return self.nn.embedding(self.torch.tensor(ids.astype(np.int64)), table)

    def add_positions(self, x, table, positions):
        return x + self.nn.embedding(self.torch.tensor(positions), table)

    def add_sinusoids(self, x, positions):
        width = x.shape[-1]
        rows = [
            [(math.cos if d % 2 else math.sin)(p / 10000 ** ((d - d % 2) / width)) for d in range(width)]
            for p in positions.reshape(-1)
        ]
        return x + self.torch.tensor(rows, dtype=x.dtype).reshape(*positions.shape, width)

    def cross_entropy(self, logits, targets, ignore_index=IGNORED, label_smoothing=0.0):
        return self.nn.cross_entropy(
            logits.reshape(targets.size, logits.shape[-1]),
            self.torch.tensor(targets.reshape(-1)),
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction="sum",
        )

    def linear_cross_entropy(self, h, table, bias, **settings):
        return self.cross_entropy(self.nn.linear(h, table, bias), **settings)

    def attention(self, q, k, v, mask, bias=None, scale=None, dropout=0.0, key=None):
        batch, queries, heads, _ = q.shape
        keys, per_group = k.shape[1], heads // k.shape[2]
        seen = naive_visible(mask, batch, queries, keys)[:, None]
        scores = np.zeros((batch, heads, queries, keys)) if bias is None else bias
        seen = np.broadcast_to(seen & (scores > -1e30), (batch, heads, queries, keys))
        added = self.torch.tensor(np.where(seen, scores, -np.inf), dtype=q.dtype)
        q, k, v = (x.transpose(1, 2) for x in (q, *(x.repeat_interleave(per_group, 2) for x in (k, v))))
        if key is None or not dropout:
            y = self.nn.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
        else:  # theirs draws other numbers
            scale = q.shape[-1] ** -0.5 if scale is None else scale
            weights = self.nn.softmax(q @ k.mT * scale + added.clamp(min=-1e30), dim=-1)
            keep = keep_mask(np, key, (batch, heads, queries, keys), dropout) & seen
            y = weights * self.torch.tensor(keep) / (1 - dropout) @ v
        return y.transpose(1, 2)
