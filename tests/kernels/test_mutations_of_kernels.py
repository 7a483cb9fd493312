"""Planted mistakes in the kernels; see ``mutations``."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from common.fused_attention import KEY, check, draw, some_bias
from common.kernel_pairs import check_pair
from common.mutations import mutated

from minitransformer import functional
from minitransformer.functional import Mask, causal_mask, full_mask
from minitransformer.functional.attention import INVISIBLE
from minitransformer.kernels import cpu
from minitransformer.kernels.cpu import compiling

KERNELS = Path(cpu.__file__).parent
CAUSAL = {"mask": causal_mask(150)}
STEP = {"mask": Mask(140, 0, 149)}
DROPPED = {"mask": full_mask(150), "dropout": 0.3, "key": KEY}
BIASED = {"mask": full_mask(150), "bias": some_bias((150, 150), "float32")}
BIASED["bias"][7] = INVISIBLE
ADDED_ROWS = (
    "add_lanes_times_rows(target, row_bytes, left, QUERY_BLOCK, lane, ROWS, rows_address, count, "
    "problem.head_width, ones)"
)
FILES = (  # in the order of their imports
    *("attention_problem", "attention_tiles", "attention_forward", "attention_backward"),
    *("attention_of_one_query", "attention"),
    *("activations", "matrix_product", "linear", "linear_gelu", "linear_cross_entropy"),
)
MISTAKES = {  # name: file, text, wrong text, how to call, which result must be wrong, the number of queries
    "no rescaling": (
        *(
            "attention_forward",
            "store(rescale + lane_bytes, factor)",
            "store(rescale + lane_bytes, splat(1.0))",
        ),
        *(CAUSAL, "y"),
    ),
    "diagonal off by one": ("attention_problem", "i + offset + 1", "i + offset", CAUSAL, "y"),
    "hidden keys shown": (
        *("attention_forward", "start + keys > fewest", "start + keys > fewest + KEY_BLOCK"),
        *(CAUSAL, "y"),
    ),
    "a tail not masked": (
        "attention_forward",
        "_exponentiate(scores, keys, largest, totals, factors)",
        "_exponentiate(scores, (keys + 7) // 8 * 8, largest, totals, factors)",
        *({"mask": full_mask(150)}, "y"),
    ),
    "D forgotten": (
        *(
            "attention_backward",
            "e * (load(dscores + offset_bytes) - delta)",
            "e * load(dscores + offset_bytes)",
        ),
        *(CAUSAL, "dq"),
    ),
    "hidden keys shown in the backward": (
        *("attention_backward", "start + rows > fewest", "start + rows > fewest + KEY_BLOCK"),
        *(CAUSAL, "dq"),
    ),
    "a query that sees passed over": (
        *("attention_backward", ADDED_ROWS, ADDED_ROWS.replace("lane,", "lane + 1,")),
        *(CAUSAL, "dk"),
    ),
    "dropped of a neighbour": (
        "attention_tiles",
        "lane_numbers() + words(i)",
        "lane_numbers() + words(i + 1)",
        DROPPED,
        "y",
    ),
    "dropout forgotten in dP": (
        *(
            "attention_backward",
            "where(keep, load(dscores + offset_bytes), zero)",
            "load(dscores + offset_bytes)",
        ),
        *(DROPPED, "dq"),
    ),
    "dropout forgotten in dv": (
        *(
            "attention_backward",
            "store(scores + offset_bytes, where(keep, e, zero))",
            "store(scores + offset_bytes, e)",
        ),
        *(DROPPED, "dv"),
    ),
    "bias in units of log 2": (
        "attention_tiles",
        "fused(bias, unit, load(scores + offset_bytes))",
        "fused(bias, splat(1.0), load(scores + offset_bytes))",
        BIASED,
        "y",
    ),
    "invisible by bias shown": (
        "attention_tiles",
        "where(bias <= invisible, hidden, score)",
        "score",
        BIASED,
        "y",
    ),
    "one query: no rescaling": (
        *(
            "attention_of_one_query",
            "store(address, load(address) * rescale)",
            "store(address, load(address))",
        ),
        *(STEP, "y", 1),
    ),
    "one query: padding shown": (
        *("attention_of_one_query", "_hide_rest(scores, keys)", "pass"),
        *(STEP, "y", 1),
    ),
    "one query: bias forgotten": (
        *("attention_of_one_query", "problem.bias.address", "False"),
        *(STEP | {"bias": some_bias((1, 150), "float32")}, "y", 1),
    ),
}


SMOOTHED = {"targets": np.arange(40) * 7 % 100, "label_smoothing": 0.1}
MISTAKES_IN_PRODUCTS = {  # name: file, text, wrong text, operation, its settings, which result must be wrong
    "a second block of the depth not added": (
        *("matrix_product", "record.add != 0 or start > 0", "record.add != 0"),
        *("linear", {}, "y"),
    ),
    "last rows not computed": (
        *("matrix_product", "range(0, rows, ROWS)", "range(0, whole, ROWS)"),
        *("linear", {}, "y"),
    ),
    "sums of the next column": (
        *("matrix_product", "first % PANEL", "(first + 1) % PANEL"),
        *("linear", {}, "gradient 3"),
    ),
    "bias added twice": (
        *("matrix_product", "load_some(bias + place, width)", "load_some(bias + place, width) * splat(2.0)"),
        *("linear", {}, "y"),
    ),
    "derivative at the wrong argument": (
        *("activations", "fused(x * splat(DENSITY), power, cdf)", "fused(z * splat(DENSITY), power, cdf)"),
        *("linear_gelu", {"form": "exact"}, "gradient 1"),
    ),
    "derivative forgotten": (
        "linear_gelu",
        "load_some(record.a + place, count) * load_some(record.b + place, count)",
        "load_some(record.a + place, count)",
        *("linear_gelu", {"form": "tanh"}, "gradient 1"),
    ),
    "last block of the vocabulary skipped": (
        *("linear_cross_entropy", "_blocks(rows, classes)", "_blocks(rows, classes)[:-1]"),
        *("linear_cross_entropy", SMOOTHED, "y"),
    ),
    "total not rescaled": (
        "linear_cross_entropy",
        "saved.total * before + total * here",
        "saved.total + total * here",
        *("linear_cross_entropy", SMOOTHED, "y"),
    ),
    "label smoothing forgotten in the backward": (
        *("linear_cross_entropy", "saved.label_smoothing / table.shape[0]", "0.0"),
        *("linear_cross_entropy", SMOOTHED, "gradient 1"),
    ),
    "target of another block": (
        *("linear_cross_entropy", "targets >= part.start", "targets > part.start"),
        *("linear_cross_entropy", SMOOTHED | {"targets": np.full(40, 32)}, "y"),
    ),
    "target of another block in the backward": (
        *("linear_cross_entropy", "saved.targets >= part.start", "saved.targets > part.start"),
        *("linear_cross_entropy", SMOOTHED | {"targets": np.full(40, 32)}, "gradient 1"),
    ),
}


@pytest.fixture
def compile_changed(monkeypatch):
    """Return a function that compiles the kernels with a mistake in one of their files.

    Only what imports that file is compiled.
    """
    monkeypatch.setattr(compiling, "cache_folder", _no_folder)  # it must not be cached

    def compile_changed(file, old, new):
        package, changed = types.ModuleType("changed"), {file}
        package.__dict__.update(vars(cpu))
        monkeypatch.setitem(sys.modules, "changed", package)
        for name in FILES:
            source = (KERNELS / f"{name}.py").read_text(encoding="utf-8")
            if name == file:
                source = mutated(source, old, new)
            for other in changed:
                source = source.replace(f"minitransformer.kernels.cpu.{other} ", f"changed.{other} ")
            source = source.replace("from minitransformer.kernels.cpu import", "from changed import")
            if name != file and "from changed" not in source:
                continue
            changed.add(name)
            module = types.ModuleType(f"changed.{name}")
            monkeypatch.setitem(sys.modules, f"changed.{name}", module)
            setattr(package, name, module)
            exec(compile(source, str(KERNELS / f"{name}.py"), "exec"), module.__dict__)
        return package

    return compile_changed


@pytest.mark.filterwarnings("ignore:compiled kernels cannot be cached")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_caught(mistake, compile_changed):
    file, text, wrong, arguments, name, *queries = MISTAKES[mistake]
    changed = compile_changed(file, text, wrong).attention
    backward = _no_backward if name == "y" else changed.attention_backward
    arrays = draw(0, 1, *(queries or [150]), 150, 1, 1, 16)
    with pytest.raises(AssertionError) as error:
        check(*arrays, (changed.attention, backward), **arguments)
    assert str(error.value).startswith(f"{name}: ")


@pytest.mark.filterwarnings("ignore:compiled kernels cannot be cached")
@pytest.mark.parametrize("mistake", MISTAKES_IN_PRODUCTS)
def test_planted_mistakes_in_products_are_caught(mistake, compile_changed, monkeypatch):
    file, text, wrong, operation, settings, name = MISTAKES_IN_PRODUCTS[mistake]
    changed = vars(compile_changed(file, text, wrong))[operation]
    for constant, value in {"SMALLEST_BLOCK": 16, "BLOCK": 1, "KEPT_BYTES": 0}.items():
        monkeypatch.setattr(changed, constant, value, raising=False)
    definition, fused = (
        [getattr(module, f"{operation}{suffix}") for suffix in ("", "_backward")]
        for module in (functional, changed)
    )
    random = np.random.default_rng(0)
    x, weight, bias = (random.standard_normal(shape, np.float32) for shape in ((40, 300), (300, 100), (100,)))
    weight, dy = weight / np.float32(300**0.5), random.standard_normal((40, 100), np.float32)
    if operation == "linear_cross_entropy":
        weight, dy = weight.T, np.float32(1)
    with pytest.raises(AssertionError, match=rf"(^|\s){name}(:|\s)"):
        check_pair(definition, fused, (x, weight, bias), dy, **settings)


def _no_backward(dy, saved):
    """Return zeros, which are not compared: the value is wrong already."""
    return saved.q * 0, saved.k * 0, saved.v * 0


def _no_folder():
    raise OSError("a changed kernel is not cached")
