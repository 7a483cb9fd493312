"""The record that describes a call of attention, and what compiled code is made from."""

import ast
import shutil
from pathlib import Path

import numpy as np
import pytest

import minitransformer
from minitransformer.kernels.cpu import compiling
from minitransformer.kernels.cpu.problem import PROBLEM, make_problem

PACKAGE, KERNELS = Path(minitransformer.__file__).parent, Path(compiling.__file__).parents[1]


def test_a_record_is_what_numpy_fills_by_name():
    random = np.random.default_rng(0)
    expected = np.zeros(1, PROBLEM)
    fields = {}
    for name in PROBLEM.names:
        dtype = PROBLEM[name]
        if dtype.names:
            fields[name] = tuple(random.integers(-(2**62), 2**62, len(dtype.names)).tolist())
        else:
            fields[name] = random.integers(-(2**62), 2**62).item() if dtype.kind == "i" else random.random()
        expected[name] = fields[name]
    np.testing.assert_array_equal(make_problem(**fields), expected)
    np.testing.assert_array_equal(make_problem(), np.zeros(1, PROBLEM))
    assert make_problem().flags.writeable


def test_a_record_refuses_a_field_that_it_does_not_have():
    with pytest.raises(TypeError, match="PROBLEM has no field tiles"):
        make_problem(tile=3, tiles=4)


def file_of(module):
    """Return the file of a module of the package, or None for a name within a module."""
    parts = module.split(".")[1:]
    base = KERNELS.joinpath(*parts[1:]) if parts[:1] == ["kernels"] else PACKAGE.joinpath(*parts)
    candidates = base / "__init__.py", base.with_suffix(".py")
    return next((path for path in candidates if path.exists()), None)


def imported_files(path):
    """Return the files of the package that the module at ``path`` imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {file_of(name) for name in names if name.partition(".")[0] == "minitransformer"} - {None}


def test_the_cache_depends_on_every_file_that_kernels_import():
    waiting, found = set((KERNELS / "cpu").glob("*.py")), set()
    while waiting:
        path = waiting.pop()
        found.add(path)
        waiting |= imported_files(path) - found
    assert {"philox.py", "arrays.py", "tiles.py"} <= {path.name for path in found}
    without_constants = {PACKAGE / "__init__.py", PACKAGE / "system" / "__init__.py"}
    assert found - without_constants <= set(compiling.sources())


@pytest.fixture
def new_digests():
    """Forget the digest before the test and after it."""
    compiling._digest.cache_clear()
    yield
    compiling._digest.cache_clear()


@pytest.mark.usefixtures("new_digests")
def test_an_edit_of_any_of_them_changes_the_cache(monkeypatch, tmp_path):
    copies = [tmp_path / str(number) for number in range(len(compiling.sources()))]
    for source, copy in zip(compiling.sources(), copies, strict=True):
        shutil.copyfile(source, copy)
    digests = [compiling._digest()]
    monkeypatch.setattr(compiling, "sources", lambda: copies)
    for copy in (None, *copies):
        if copy is not None:
            copy.write_bytes(copy.read_bytes() + b"# an edit")
        compiling._digest.cache_clear()
        digests.append(compiling._digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == len(copies) + 1
