"""The records that describe calls, and the hash of the sources of compiled code."""

import shutil

import numpy as np
import pytest

from minitransformer.kernels.cpu import compiling
from minitransformer.kernels.cpu.records import MATRIX, Layout, address_of, locate
from tutorials.source_imports import imported_modules, modules

LAYOUT = Layout("rows", ("scale", np.float64), ("left", MATRIX), ("right", MATRIX))


def test_a_record_is_what_numpy_fills_by_name():
    random = np.random.default_rng(0)
    expected = np.zeros(1, LAYOUT.dtype)
    fields = {}
    for name in LAYOUT.dtype.names:
        dtype = LAYOUT.dtype[name]
        if dtype.names:
            fields[name] = tuple(random.integers(-(2**62), 2**62, len(dtype.names)).tolist())
        else:
            fields[name] = random.integers(-(2**62), 2**62).item() if dtype.kind == "i" else random.random()
        expected[name] = fields[name]
    assert LAYOUT(**fields).tobytes() == expected.tobytes()
    assert not LAYOUT().any() and LAYOUT().nbytes == LAYOUT.dtype.itemsize
    assert LAYOUT().flags.writeable and not np.shares_memory(LAYOUT(), LAYOUT())


def test_a_record_refuses_a_field_that_it_does_not_have():
    with pytest.raises(
        TypeError, match="there is no field columns; expected one of rows, scale, left, right"
    ):
        LAYOUT(rows=3, columns=4)


def test_what_is_missing_has_address_0():
    matrix = np.zeros((3, 5), np.float32)[::-1, ::2]
    assert locate(None) == (0, 0, 0) and address_of(None) == 0
    assert locate(matrix) == (matrix.ctypes.data, -20, 8) and address_of(matrix) == matrix.ctypes.data


def test_the_cache_depends_on_every_file_that_kernels_import():
    known = modules()
    waiting, found = {module for module in known if module.startswith("kernels.cpu")}, set()
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= imported_modules(module, known) - found
    assert {"functional.philox", "arrays", "kernels.cpu.attention_tiles"} <= found
    assert {known[module] for module in found} <= set(compiling.sources())


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
