"""Planted mistakes in the kernels; see ``mutations``."""

import sys
import types
from pathlib import Path

import pytest
from common.fused_attention import KEY, check, draw, some_bias
from common.mutations import mutated

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
        return package.attention

    return compile_changed


@pytest.mark.filterwarnings("ignore:compiled kernels cannot be cached")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_caught(mistake, compile_changed):
    file, text, wrong, arguments, name, *queries = MISTAKES[mistake]
    changed = compile_changed(file, text, wrong)
    backward = _no_backward if name == "y" else changed.attention_backward
    arrays = draw(0, 1, *(queries or [150]), 150, 1, 1, 16)
    with pytest.raises(AssertionError) as error:
        check(*arrays, (changed.attention, backward), **arguments)
    assert str(error.value).startswith(f"{name}: ")


def _no_backward(dy, saved):
    """Return zeros, which are not compared: the value is wrong already."""
    return saved.q * 0, saved.k * 0, saved.v * 0


def _no_folder():
    raise OSError("a changed kernel is not cached")
