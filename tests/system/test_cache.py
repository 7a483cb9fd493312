"""The folder for what can be made again: chosen by settings and home, temporary where neither can be used."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from minitransformer.data import character_tokenizer, encode, token_file
from minitransformer.data.text import open_text
from minitransformer.system import cache
from minitransformer.system.cache import is_temporary, make_cache_folder

CONTENT = "in some lines, again and again\n" * 40


@pytest.fixture
def text(tmp_path):
    """The text ``CONTENT``."""
    (tmp_path / "text").write_text(CONTENT)
    return open_text([tmp_path / "text"])


@pytest.fixture
def fresh_process(monkeypatch, tmp_path):
    """Let nobody have asked for a temporary cache yet; temporary folders lie in ``temporary``."""
    cache._make_temporary_cache.cache_clear()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("MINITRANSFORMER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield tmp_path / "temporary"
    cache._make_temporary_cache.cache_clear()


@pytest.fixture(params=["named", "caches", "home", "nobody"])
def unwritable(request, fresh_process, tmp_path, monkeypatch):
    """Let there be no folder to keep things in; return how the warning begins."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    if request.param == "named":
        monkeypatch.setenv("MINITRANSFORMER_CACHE", str(tmp_path / "file" / "cache"))
        return f"{tmp_path}/file/cache cannot be written to; "
    if request.param == "caches":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        return f"{tmp_path}/file/minitransformer cannot be written to; "
    if request.param == "home":
        return f"{tmp_path}/file/.cache/minitransformer cannot be written to; "

    def getpwuid(_):
        raise KeyError("no such user")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    return "there is no home folder; "


def test_without_a_cache_tokens_are_kept_for_a_while(unwritable, fresh_process, text):
    tokenizer = character_tokenizer(CONTENT)
    with pytest.warns(RuntimeWarning, match="in the environment variable MINITRANSFORMER_CACHE") as warned:
        tokens = token_file(text, tokenizer)
        other = make_cache_folder("other")
        again = token_file(text, tokenizer)
    (warning,) = warned
    (folder,) = fresh_process.iterdir()
    assert str(warning.message).startswith(
        f"{unwritable}the cache is {folder}, which is removed when this process ends; name a folder"
    )
    np.testing.assert_array_equal(tokens, encode(tokenizer, CONTENT))
    assert other == folder / "other"
    assert other.is_dir()
    assert is_temporary(other)
    assert folder.stat().st_mode & 0o077 == 0, "others could plant compiled code"
    assert str(tokens.filename) == str(again.filename)
    assert len(list((folder / "tokens").iterdir())) == 1


def test_without_any_folder(unwritable, fresh_process, text):
    fresh_process.rmdir()
    message = f"{unwritable[:-2]}, and no temporary folder can be made .*MINITRANSFORMER_CACHE"
    with pytest.raises(OSError, match=message):
        token_file(text, character_tokenizer(CONTENT))


def test_the_temporary_cache_goes_with_its_process_not_with_a_fork(tmp_path):
    (tmp_path / "file").touch()
    code = """
import os
from minitransformer.system.cache import make_cache_folder
folder = make_cache_folder()
child = os.fork()
if child:
    print(folder, os.waitpid(child, 0)[1], folder.is_dir())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "MINITRANSFORMER_CACHE": str(tmp_path / "file"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    folder, *rest = done.stdout.split()
    assert Path(folder).parent == tmp_path
    assert rest == ["0", "True"]
    assert not Path(folder).exists()


def test_where_the_cache_lies(fresh_process, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINITRANSFORMER_CACHE", "")
    assert make_cache_folder("part") == tmp_path / "home" / ".cache" / "minitransformer" / "part"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert make_cache_folder() == tmp_path / "elsewhere" / "minitransformer"
    monkeypatch.setenv("MINITRANSFORMER_CACHE", str(tmp_path / "chosen"))
    assert make_cache_folder() == tmp_path / "chosen"
    assert make_cache_folder().is_dir()
    assert not is_temporary(make_cache_folder())
    assert list(tmp_path.glob("chosen/*")) == []
