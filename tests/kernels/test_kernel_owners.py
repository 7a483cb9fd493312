"""Where gradients may not be added, and what kernels leave to definitions."""

import numpy as np
import pytest

from minitransformer import dispatch, functional
from minitransformer.functional import causal_mask
from minitransformer.kernels.cpu import attention as fused
from minitransformer.kernels.cpu import embedding as scatter


def test_attention_adds_to_its_own_inputs_only_after_it_has_read_them():
    q, k, v, dy = np.random.default_rng(0).standard_normal((4, 1, 70, 2, 16), np.float32)
    _, saved = fused.attention(q, k, v, mask=causal_mask(70))
    alone = fused.attention_backward(dy, saved)
    before = k.copy()
    for gradient, expected in zip(
        fused.attention_backward(dy, saved, add_to=(None, k, None)),
        (alone[0], alone[1] + before, alone[2]),
        strict=True,
    ):
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_rows_are_added_to_the_upstream_gradient_only_after_it_has_been_read():
    random = np.random.default_rng(0)
    table, dy = random.standard_normal((2, 40, 33), np.float32)
    ids = random.integers(0, 40, 40)
    _, saved = scatter.embedding(table, ids=ids)
    expected = scatter.embedding_backward(dy, saved)[0] + dy
    (dtable,) = scatter.embedding_backward(dy, saved, add_to=(dy,))
    np.testing.assert_allclose(dtable, expected, rtol=1e-5, atol=1e-5)


def test_bytes_in_the_other_order_are_left_to_the_definition():
    x, weight = np.random.default_rng(0).standard_normal((2, 128, 128), np.float32)
    foreign = x.dtype.newbyteorder()
    y, _ = dispatch.linear(x.astype(foreign), weight.astype(foreign), None)
    np.testing.assert_allclose(y, functional.linear(x, weight, None)[0], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_written_to_is_not_updated():
    buffers = np.zeros((4, 2**16), np.float32)
    values = buffers[0].view()
    values.flags.writeable = False
    settings = {"steps": 1, "learning_rate": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    with pytest.raises(ValueError, match="read-only"):
        dispatch.adamw(values, buffers[1] + 1, buffers[2], buffers[3], gradient_scale=1.0, **settings)
    assert not buffers[0].any()
