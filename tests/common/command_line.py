"""The command line, in a process of its own or in this one."""

import contextlib
import io
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from minitransformer.__main__ import main

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
SMALL = [
    *("context_length=16", "width=16", "heads=2", "layers=1"),
    *("max_steps=30", "eval_steps=10", "save_steps=10"),
]
SETTINGS = [part for setting in SMALL for part in ("--set", setting)]
TINY = *SETTINGS, "--set", "max_steps=2"
TASK = ["--set", "max_steps=3", "--set", "layers=1"]


def command(*arguments):
    return [sys.executable, "-m", "minitransformer", *map(str, arguments)]


def minitransformer(*arguments, cwd=None, **settings):
    """Run a command in a process of its own."""
    return subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **settings
    )


def answer(*arguments, cwd):
    """Run a command in this process, which takes a second less."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", ["minitransformer", *map(str, arguments)])
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which a command changes
        patch.setenv("OPENBLAS_THREAD_TIMEOUT", "4")  # which it would set
        main()
    return SimpleNamespace(returncode=ended.value.code, stdout=output.getvalue(), stderr=errors.getvalue())


def environment(without=(), **changes):
    """Return the environment with ``changes``, ``without`` what would stand in their way."""
    return {name: value for name, value in os.environ.items() if name not in without} | changes


def assert_one_error(done, message):
    assert done.returncode == 1
    assert done.stderr.startswith("minitransformer: error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
