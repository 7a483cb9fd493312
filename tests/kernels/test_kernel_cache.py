"""Compiled code on disk: loaded again, compiled again if damaged, and not cached on a full disk."""

import ctypes
import os

import pytest
from common.processes import room_for

from minitransformer.kernels.cpu import compiling
from minitransformer.kernels.cpu.records import Layout

LAYOUT = Layout("number")


def echo(record, worker):
    """Return ``worker``: the smallest kernel, which compiles in a tenth of a second."""
    return worker


@pytest.fixture
def compiled(monkeypatch, tmp_path, capsys):
    """Return a function that gets the kernel as a new process would; return whether it was compiled."""
    monkeypatch.setattr(compiling.numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("MINITRANSFORMER_CACHE", str(tmp_path))

    def compiled():
        kernel = compiling.kernel(LAYOUT, seconds=1)(echo)
        call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(kernel.address())
        assert call(None, 7) == 7
        return "compiling echo, once" in capsys.readouterr().err

    return compiled


@pytest.mark.parametrize("size", [0, 200])
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_file_is_made_anew(compiled, tmp_path, kind, size):
    assert [compiled(), compiled()] == [True, False]
    files = list(tmp_path.rglob(f"*.{kind}"))
    assert files
    for path in files:
        assert path.stat().st_size > size
        os.truncate(path, size)
    assert [compiled(), compiled()] == [True, False]


def test_a_full_disk_keeps_nothing(compiled, tmp_path):
    with room_for(100), pytest.warns(RuntimeWarning, match=r"kernels cannot be .*too large"):
        compiled()
    assert compiled()
