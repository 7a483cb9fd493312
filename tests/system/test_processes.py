"""The suite beside other work: it minds no signal that its parent ignores, and leaves no process behind."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from common.processes import running

HERE = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and groups of processes are POSIX's")

SIGNALLED = """
import signal
import subprocess
import sys

import pytest

def test_itself():
    for number in signal.SIGINT, signal.SIGTERM:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)

def test_its_children():
    tell = "import signal; print([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])"
    shown = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, timeout=60)
    assert "default_int_handler" in shown.stdout
    assert "SIG_DFL" in shown.stdout
"""
WAITING = """
import sys
import time

from common.processes import running

FORKS = "import os, time; print(os.getpid(), os.fork() or os.getpid(), flush=True); time.sleep(600)"

def test_that_waits():
    with running([sys.executable, "-c", FORKS], stdout=open("started", "w")):
        time.sleep(600)
"""


def suite(folder, text):
    """Return the command that runs a test file with ``text`` in ``folder`` as ours are run."""
    (folder / "test_planted.py").write_text(text)
    return [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", str(folder)]


def environment():
    return {**os.environ, "PYTHONPATH": str(HERE)}


def ignore():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def test_signals_that_the_parent_ignores(tmp_path):
    done = subprocess.run(
        suite(tmp_path, SIGNALLED),
        cwd=tmp_path,
        env=environment(),
        preexec_fn=ignore,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_suite_that_is_stopped_ends_what_it_started(tmp_path, sent):
    settings = {"cwd": tmp_path, "env": environment(), "stdout": subprocess.PIPE, "preexec_fn": ignore}
    with running(suite(tmp_path, WAITING), **settings) as process:
        started = wait_for(lambda: two_numbers(tmp_path / "started"))
        process.send_signal(sent)
        process.communicate(timeout=60)
        wait_for(lambda: not any(map(runs, started)))


def test_what_a_failing_block_started_is_ended(tmp_path):
    def fail():
        with running([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
            seen.append(process)
            raise ValueError

    seen = []
    with pytest.raises(ValueError):
        fail()
    assert seen[0].returncode == -signal.SIGKILL


def test_no_test_starts_what_may_run_for_ever():
    """``subprocess.run`` kills what exceeds its limit; whatever else starts processes is in ``processes``."""
    for path in HERE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess."):
                limited = any(keyword.arg == "timeout" for keyword in node.keywords)
                assert limited or path.name == "processes.py", f"{path.name}, line {node.lineno}"


def test_no_test_needs_another():
    """Every test file runs alone: what two of them need is in ``common``."""
    for path in HERE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.split(".")[-1].startswith("test_"), f"{path.name}, line {node.lineno}"


def two_numbers(path):
    """Return the two numbers that are written in ``path``, or None so far."""
    words = path.read_text().split() if path.exists() else []
    return [int(word) for word in words[:2]] if len(words) >= 2 else None


def runs(number):
    """Return whether there is a process of this ``number`` that has not ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        pass
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self/stat").exists()


def wait_for(condition, seconds=60):
    """Return what ``condition()`` returns as soon as that is true; fail if it never is."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value
