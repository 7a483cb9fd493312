"""Kernels in other processes: compiling, caching, and vectors of other widths."""

import os
import shutil

import llvmlite.binding
import numba
import pytest
from common.new_process import ROOT, run

from minitransformer.kernels.cpu import compiling
from minitransformer.kernels.cpu.vectors import LANES

FORWARD = """
import numpy as np
from minitransformer.dispatch import attention
from minitransformer.functional import full_mask
q = np.ones((1, 256, 1, 16), np.float32)
k = q * np.arange(256)[:, None, None]
print(attention(q, k.astype("f"), q, mask=full_mask(256), bias=np.ones((1, 256)))[0].sum())
"""


# --- compiling


def test_compiled_once_for_all_processes_until_an_edit(tmp_path):
    package = tmp_path / "package" / "minitransformer"
    shutil.copytree(ROOT / "minitransformer", package)
    shutil.copytree(ROOT / "kernels", package / "kernels")
    environment = {"PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first, said = run(FORWARD, **environment)
    assert said.count("minitransformer: compiling") == said.count("minitransformer: compiled") == 1
    assert "compiling attention_forward, once, about 4 s" in said
    assert run(FORWARD, **environment) == (first, "")

    tiles = package / "kernels" / "cpu" / "attention_tiles.py"  # not the file of the kernel itself
    tiles.write_text(tiles.read_text().replace("load(address) * factor", "factor"))
    changed, said = run(FORWARD, **environment)
    assert "attention_forward" in said and changed != first


def test_where_compiled_code_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("MINITRANSFORMER_CACHE", str(tmp_path / "all"))
    assert compiling.cache_folder().parent == tmp_path / "all"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "named"))
    assert compiling.cache_folder().parent == tmp_path / "named"


def test_a_folder_named_for_numba_that_cannot_be_written_to(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINITRANSFORMER_CACHE", str(tmp_path / "all"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file"))
    assert compiling.cache_folder().parent == tmp_path / "all"


def no_folder(part=""):
    raise OSError(f"there is no folder, not even for {part}")


def test_nothing_can_be_kept(monkeypatch):
    monkeypatch.setattr(compiling, "make_cache_folder", no_folder)
    compiling._warn_that_nothing_is_cached.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"cannot be cached .*no folder, .* MINITRANSFORMER_CACHE"):
        assert compiling.compile_once(lambda cache: cache, "nothing", 0) is False


def test_what_is_kept_for_this_process_only(tmp_path):
    (tmp_path / "file").touch()
    settings = {"MINITRANSFORMER_CACHE": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    report = "from minitransformer.kernels.cpu.report import report; print(report().cache)\n"
    printed, said = run(FORWARD + report, **settings)
    assert "until this process ends: kernels are compiled in every process" in printed
    assert said.count("compiling attention_forward, in every process") == 1
    assert said.count("MINITRANSFORMER_CACHE") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_importing_the_library_does_not_load_numba():
    code = "import sys, minitransformer.models, minitransformer.training; print('numba' in sys.modules)"
    assert run(code) == ("False\n", "")


def test_without_numba_definitions_run():
    code = """
import sys
sys.modules["numba"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "numba" else find(name)
import importlib.metadata
version = importlib.metadata.version
def missing(name):
    if name == "numba":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = missing
from minitransformer import dispatch
from minitransformer.command import info
"""
    printed, _ = run(code + FORWARD + "print(dispatch.misses['attention'], info.collect_facts()['kernels'])")
    assert "1 none: Numba is missing" in printed


def test_a_numba_that_cannot_be_imported_is_told_of_once(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.0 or less')")
    printed, said = run(2 * FORWARD, PYTHONPATH=str(tmp_path))
    assert len(printed.split()) == 2
    assert said.count("Numba needs NumPy 1.0 or less") == 1


def test_without_compiling_definitions_run():
    code = "from minitransformer.command.info import collect_facts\nprint(collect_facts()['kernels'])"
    printed, said = run(FORWARD + code, NUMBA_DISABLE_JIT="1")
    assert "none: Numba is missing or switched off" in printed and said == ""


@pytest.mark.parametrize("cached", [False, True])
def test_info_tells_of_the_cache(tmp_path, cached):
    code = "from minitransformer.command.info import collect_facts\nprint(collect_facts()['kernel cache'])"
    cache = os.environ["MINITRANSFORMER_CACHE"] if cached else str(tmp_path)  # the tests' is compiled once
    printed, _ = run(FORWARD * cached + code, MINITRANSFORMER_CACHE=cache)
    assert cache in printed
    assert ("attention_forward" if cached else "still empty") in printed
    printed, said = run(code, MINITRANSFORMER_CACHE=os.devnull)
    assert "until this process ends" in printed
    assert said.count(f"{os.devnull} cannot be written to; the cache is ") == 1


# --- processors


def narrower_processors():
    """Return processors with narrower vectors that this one can emulate, and their LANES."""
    if "x86_64" not in llvmlite.binding.get_process_triple():
        return [("generic", 4)]
    return [("haswell", 8), ("x86-64", 4)] if LANES > 8 else [("x86-64", 4)]  # 8 is what this one has


@pytest.mark.parametrize(("processor", "width"), narrower_processors(), ids=str)
def test_attention_with_narrower_vectors(processor, width):
    code = """
from common.fused_attention import KEY, check, draw, some_bias
from minitransformer.functional import Mask
from minitransformer.kernels.cpu.vectors import LANES
for width in (16, 20, 5):
    for mask in (Mask(70, 0, 3), Mask(80, 80, 0)):
        check(*draw(width, 2, 67, 80, 2, 1, width), mask=mask)
        check(*draw(width, 2, 67, 80, 2, 1, width), mask=mask, dropout=0.2, key=KEY)
        check(*draw(width, 2, 67, 80, 2, 1, width), mask=mask, bias=some_bias((2, 67, 80), "float32"))
    check(*draw(width, 2, 1, 80, 2, 1, width), mask=Mask(75, 70, 9))
print(LANES)
"""
    assert run(code, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES="")[0] == f"{width}\n"


CHECK_KERNELS = """
from common.any_width import check_kernels
from minitransformer.kernels.cpu.emitting import LANES, REGISTERS
from minitransformer.kernels.cpu.matrix_product import ROWS, VECTORS
from minitransformer.kernels.cpu.packed_linear import PANEL_OUTPUTS, X_ROWS
check_kernels()
print(LANES, REGISTERS, ROWS * VECTORS, X_ROWS * PANEL_OUTPUTS // LANES)
"""


@pytest.mark.parametrize(("processor", "width"), narrower_processors(), ids=str)
def test_other_kernels_with_narrower_vectors(processor, width):
    printed, _ = run(CHECK_KERNELS, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES="")
    lanes, registers, *sums = map(int, printed.split())
    assert lanes == width
    assert max(sums) < registers


@pytest.mark.skipif(LANES == 16, reason="this processor has vectors of 16 lanes")
def test_other_kernels_with_vectors_of_16_lanes(tmp_path):
    """LLVM divides each vector among registers of this processor."""
    wide = """
from minitransformer.kernels.cpu import emitting
emitting.LANES, emitting.VECTOR_BYTES, emitting.REGISTERS = 16, 64, 32
"""
    cache = str(tmp_path)  # of its own: the name of a cache does not tell this width from the processor's
    assert run(wide + CHECK_KERNELS, MINITRANSFORMER_CACHE=cache)[0] == "16 32 24 8\n"
