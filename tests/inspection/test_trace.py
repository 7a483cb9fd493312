"""``trace()``: what it prints of a step."""

import io
import re

import numpy as np

from minitransformer import inference, trace
from minitransformer.layers import Linear
from minitransformer.models import GPT, GPTConfig

IDS = np.arange(6).reshape(2, 3)
BATCH = {"ids": IDS, "targets": IDS}


def traced(run):
    lines = io.StringIO()
    with trace(lines):
        run()
    return lines.getvalue().splitlines()


def test_every_operation_of_a_forward_and_its_backward():
    model = GPT(GPTConfig(vocabulary_size=6, context_length=4, layers=2, heads=2, width=8)).build()

    def step():
        _, backward = model.loss(BATCH)
        backward({"tokens": 0.5})

    lines = traced(step)
    block = ["layer_norm", "linear", "attention", "linear", "layer_norm", "linear_gelu", "linear"]
    names = ["embedding", "add_positions", *block, *block, "layer_norm", "linear_cross_entropy"]
    assert [line.split()[1] for line in lines[:-1]] == [*names, *reversed(names)]
    assert [line[0] for line in lines[:-1]] == ["→"] * len(names) + ["←"] * len(names)
    assert lines[-1].startswith("saved for backward, each array counted once: ")


def test_shapes_bytes_and_norms():
    layer = Linear(3, 4).build(dtype="float64")
    x, dy = np.ones((2, 3)), np.full((2, 4), 0.5)

    def run():
        _, backward = layer(x)
        backward(dy)

    forward, backward, total = traced(run)
    assert re.split(r"\s{2,}| saved ", forward) == ["→ linear", "2×3 3×4 4 → 2×4", "saved 144 B"]
    dx = np.linalg.norm(dy @ layer.weight.value.T)
    numbers = [float(number) for number in re.findall(r"[\d.e+-]+(?= |$)", backward.partition("|dy|")[2])]
    np.testing.assert_allclose(numbers, [np.sqrt(2), dx, np.sqrt(12), 2], rtol=5e-3)
    assert total.endswith(": 144 B")


def test_the_layer_that_called_stands_after_the_operation():
    model = GPT(GPTConfig(vocabulary_size=6, context_length=4, layers=1, heads=2, width=8)).build()

    def step():
        _, backward = model.loss(BATCH)
        backward({"tokens": 0.5})

    lines = traced(step)
    assert "→ embedding             [embedding]  6×8 → 2×3×8  saved 48 B" in lines
    called = [line.split("  ")[-2] for line in lines if line.startswith("← linear ")]
    assert called == [
        "[blocks.0.feed_forward.output]",
        "[blocks.0.attention.output]",
        "[blocks.0.attention.query_key_value]",
    ]
    assert next(line for line in lines if line.startswith("← linear_cross")).split()[2] == "|dy|"


def test_an_optional_array_and_nothing_saved():
    layer = Linear(3, 4, bias=False).build()

    def run():
        with inference():
            layer(np.ones((2, 3), np.float32))

    assert traced(run)[0].split(maxsplit=2)[2] == "2×3 3×4 – → 2×4  saved 0 B"
