"""The command line, started as a process of its own."""

import subprocess
import sys

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
SMALL = [
    *("context_length=16", "width=16", "heads=2", "layers=1"),
    *("max_steps=30", "eval_steps=10", "save_steps=10"),
]
SETTINGS = [part for setting in SMALL for part in ("--set", setting)]


def command(*arguments):
    return [sys.executable, "-m", "minitransformer", *map(str, arguments)]


def minitransformer(*arguments, cwd=None, **settings):
    return subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **settings
    )
