"""Dispatch: which kernel gets a call, who runs its backward, and what watchers are told."""

import sys
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
from common.blocks import pre_norm_block

from minitransformer import dispatch, functional, inference, kernels, reference
from minitransformer.dispatch import watching
from minitransformer.functional import causal_mask
from minitransformer.functional.rules import backward_uncast, forward_uncast
from minitransformer.kernels import Kernel
from minitransformer.layers import recompute
from minitransformer.parameters import Layer


class Saved(NamedTuple):
    """What the made-up kernels save: of a half type, too, statistics are float32."""

    x: Any
    largest: Any


def made_up_kernel(name):
    """Return a module with a pair for ReLU that shows who computed, and of which type the arrays were."""
    module = types.ModuleType(name)
    module.seen = []

    @forward_uncast
    def relu(x):
        module.seen.append(x.dtype.name)
        return np.maximum(x, 0), Saved(x, x.max(axis=-1).astype(np.float32))

    @backward_uncast
    def relu_backward(dy, saved):
        module.seen.append(f"{dy.dtype.name} back")
        return (dy * (saved.x > 0),)

    module.relu, module.relu_backward = relu, relu_backward
    return module


@pytest.fixture
def halves_and_singles(monkeypatch):
    """Two kernels of one operation whose records have one type."""
    modules = made_up_kernel("halves"), made_up_kernel("singles")
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    registered = (
        Kernel(("float16",), lambda x: x.size > 1, "halves"),
        Kernel(("float32",), lambda x: x.size > 1, "singles"),
    )
    monkeypatch.setitem(kernels.KERNELS, "relu", registered)
    return modules


def test_a_kernel_gets_its_types_uncast_and_runs_its_own_backward(halves_and_singles):
    halves, singles = halves_and_singles
    x = np.array([-1, 2, 3], np.float16)
    y, call = dispatch.relu(x)
    _, other_call = dispatch.relu(x.astype(np.float32))
    assert halves.seen == ["float16"]
    assert y.dtype == np.float16
    (dx,) = dispatch.relu_backward(x, call)
    dispatch.relu_backward(x.astype(np.float32), other_call)
    assert halves.seen == ["float16", "float16 back"]
    assert singles.seen == ["float32", "float32 back"]
    np.testing.assert_array_equal(dx, [0, 2, 3])


def test_gradients_of_a_half_kernel_are_added_to_their_owner(halves_and_singles):
    x = np.array([-1, 2, 3], np.float16)
    _, call = dispatch.relu(x)
    for owner in (np.ones(3, np.float16), np.ones(3, np.float32)):
        (dx,) = dispatch.relu_backward(x, call, add_to=(owner,))
        assert dx is owner
        np.testing.assert_array_equal(owner, [1, 3, 4])


def test_the_gradient_has_the_type_of_the_call_not_of_its_statistics(halves_and_singles):
    x = np.array([-1, 2, 3], np.float16)
    for call in (dispatch.relu(x)[1], dispatch.relu(x[:1])[1]):  # of the kernel, of the definition
        with pytest.raises(TypeError, match=r"relu_backward: the gradient is float32 .* were float16"):
            dispatch.relu_backward(np.ones(1, np.float32), call)


def test_what_is_no_array_is_named_by_the_definition():
    with pytest.raises(TypeError, match="attention: q is a list"):
        dispatch.attention([[1.0]], [[1.0]], [[1.0]], mask=causal_mask(1))
    q = np.ones((1, 1, 1, 1), np.float32)
    with pytest.raises(TypeError, match="attention: k is a list"):
        dispatch.attention(q, [[1.0]], q, mask=causal_mask(1))


def test_a_call_of_the_definition_is_not_taken_by_a_kernels_backward(halves_and_singles):
    x = np.array([-1, 2, 3], np.float16)
    calls = [dispatch.relu(array)[1] for array in (x[:1], x.astype(np.float64))]
    with reference():
        calls.append(dispatch.relu(x)[1])
    _, taken = dispatch.relu(x)
    for dy, call in zip((x[:1], x.astype(np.float64), x), calls, strict=True):
        (dx,) = dispatch.relu_backward(dy, call)
        np.testing.assert_array_equal(dx, np.maximum(dy, 0))
        assert dx.dtype == dy.dtype
    with reference():  # kernels are off, but the forward was one
        dispatch.relu_backward(x, taken)
    assert halves_and_singles[0].seen == ["float16", "float16 back"]
    assert halves_and_singles[1].seen == []


def test_mixed_types_go_to_the_definition_which_refuses_them(monkeypatch):
    kernel = Kernel(("float16", "float32"), lambda *arrays, **settings: True, "not imported")
    monkeypatch.setitem(kernels.KERNELS, "linear", (kernel,))
    with pytest.raises(TypeError, match="x is float16 but weight is float32"):
        dispatch.linear(np.ones((2, 2), np.float16), np.ones((2, 2), np.float32), None)


def test_a_miss_is_counted(halves_and_singles):
    before = dispatch.misses["relu"]
    dispatch.relu(np.ones(3))
    dispatch.relu(np.ones(3, np.float32))
    assert dispatch.misses["relu"] == before + 1


class Watcher:
    """Keeps the name and the path of every operation."""

    def __init__(self):
        self.forward, self.backward = [], []

    def saw_forward(self, name, path, arrays, settings, y, saved):
        self.forward.append((path, name, saved))

    def saw_backward(self, name, path, dy, saved, gradients):
        self.backward.append((path, name, saved))


def test_watchers_are_told_the_layer():
    block = pre_norm_block(8, 2, 16).build()
    x = np.ones((1, 3, 8), np.float32)
    with watching(Watcher()) as watcher:
        y, backward = block(x, causal_mask(3))
        backward(y)
        functional.relu(x)  # nobody's
        dispatch.relu(x)
    *seen, outside = [(path, name) for path, name, _ in watcher.forward]
    assert seen == [
        ("norm1", "layer_norm"),
        ("attention.query_key_value", "linear"),
        ("attention", "attention"),
        ("attention.output", "linear"),
        ("norm2", "layer_norm"),
        ("feed_forward.hidden.0", "linear_gelu"),
        ("feed_forward.output", "linear"),
    ]
    assert outside == ("", "relu")
    assert [(path, name) for path, name, _ in watcher.backward] == seen[::-1]
    assert [id(saved) for *_, saved in watcher.backward] == [
        id(saved) for *_, saved in watcher.forward[-2::-1]
    ]


def test_nothing_is_saved_under_inference():
    block = pre_norm_block(8, 2, 16).build()
    with inference(), watching(Watcher()) as watcher:
        _, backward = block(np.ones((1, 3, 8), np.float32), causal_mask(3))
    assert [saved for *_, saved in watcher.forward] == [None] * 7
    with pytest.raises(RuntimeError, match="inference"):
        backward(np.ones((1, 3, 8), np.float32))


def test_paths_lead_through_a_recomputed_layer():
    block = recompute(pre_norm_block(8, 2, 16))
    model = Stack([block]).build()
    x = np.ones((1, 3, 8), np.float32)
    with watching(Watcher()) as watcher:
        y, backward = model(x)
        backward(y)
    assert {path for path, *_ in watcher.forward} >= {"blocks.0.norm1", "blocks.0.attention"}
    assert all(path.startswith("blocks.0.") for path, *_ in watcher.forward)
    assert "blocks.0.norm1.gain" in model.parameters()


def test_a_refused_build_changes_no_path():
    model = Stack([pre_norm_block(8, 2, 16)]).build()
    with pytest.raises(RuntimeError, match="was built already"):
        model.blocks[0].build()
    assert model.blocks[0].norm1.path == "blocks.0.norm1"


class Stack(Layer):
    """Blocks, one after the other, causal."""

    def __init__(self, blocks):
        self.blocks = blocks

    def __call__(self, x):
        backwards = []
        for block in self.blocks:
            x, backward = block(x, causal_mask(x.shape[1]))
            backwards.append(backward)

        def backward(dy):
            while backwards:
                dy = backwards.pop()(dy)
            return dy

        return x, backward


def test_recomputation_runs_as_the_forward_did(monkeypatch):
    """A backward outside of ``reference()``, or within ``inference()``, changes nothing."""
    x = np.random.default_rng(0).normal(size=(1, 128, 64)).astype(np.float32)
    monkeypatch.setattr(kernels.cpu, "WORTH", 1)
    plain, recomputed = (
        Stack([kind(pre_norm_block(64, 2, 16))]).build() for kind in (lambda b: b, recompute)
    )
    gradients = []
    for model in (plain, recomputed):
        with reference():
            y, backward = model(x)
        with inference():
            gradients.append(backward(y))
    np.testing.assert_array_equal(*gradients)
