"""Planted mistakes in the product with packed weights; see ``mutations``."""

import sys
import types
from pathlib import Path

import pytest
from common.fused_packed_linear import check, draw
from common.mutations import mutated

from minitransformer.kernels.cpu import compiling
from minitransformer.kernels.cpu import packed_linear as fused

MISTAKES = {  # name: text, wrong text, type, rows
    "scale of the neighbour": (
        "load_first(problem.scales + 4 * (output + lane), count)",
        "load_first(problem.scales + 4 * (output + lane) + 4, count - 1)",
        *("int8", 3),
    ),
    "scale forgotten": (
        "total = total * load_first(problem.scales + 4 * (output + lane), count)",
        "pass",
        *("int8", 1),
    ),
    "bias added twice": (
        "total = total + load_first(problem.bias + 4 * (output + lane), count)",
        "added = load_first(problem.bias + 4 * (output + lane), count); total = total + added + added",
        *("float32", 1),
    ),
    "tail panel dropped": (
        "min(start + problem.task_outputs, problem.outputs)",
        "min(start + problem.task_outputs, problem.outputs - PANEL_OUTPUTS + 1)",
        *("float32", 1),
    ),
    "rest of the depth dropped": ("builder.sub(depth, done)", "constant(0)", "bfloat16", 1),
    "rest of the rows dropped": ("row < problem.rows", "row + X_ROWS <= problem.rows", "float32", 3),
    "row of the neighbour": (
        "problem.x.address + row * problem.x.row_bytes",
        "problem.x.address",
        *("float32", 9),
    ),
    "panel not converted": (
        "panel, kind = converted, FLOAT32",
        "panel = converted",
        *("bfloat16", 40),
    ),
}


@pytest.mark.filterwarnings("ignore:compiled kernels cannot be cached")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_caught(mistake, monkeypatch):
    text, wrong, dtype, rows = MISTAKES[mistake]
    source = Path(fused.__file__).read_text(encoding="utf-8")
    with pytest.raises(AssertionError, match=r"^y: "):
        check(
            *draw(0, rows, 37, 70), dtype, packed_linear=compiled(mutated(source, text, wrong), monkeypatch)
        )


def test_the_sign_of_int8_matters(monkeypatch):
    source = Path(sys.modules["minitransformer.kernels.cpu.emitting"].__file__).read_text(encoding="utf-8")
    emitting = types.ModuleType("changed_emitting")
    monkeypatch.setitem(sys.modules, emitting.__name__, emitting)
    unsigned = mutated(source, "builder.sext", "builder.zext")
    exec(compile(unsigned, "emitting.py, changed", "exec"), emitting.__dict__)
    source = Path(fused.__file__).read_text(encoding="utf-8")
    source = source.replace("minitransformer.kernels.cpu.emitting", emitting.__name__)
    for rows in (1, 40):
        with pytest.raises(AssertionError, match=r"^y: "):
            check(*draw(0, rows, 37, 70), "int8", packed_linear=compiled(source, monkeypatch))


def compiled(source, monkeypatch):
    """Return ``packed_linear`` of the changed ``source``, which is not cached."""
    monkeypatch.setattr(compiling, "cache_folder", _no_folder)
    module = types.ModuleType("changed_packed_linear")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, fused.__file__, "exec"), module.__dict__)
    return module.packed_linear


def _no_folder():
    raise OSError("a changed kernel is not cached")
