"""A kernel's file with a mistake in it, compiled."""

import importlib
import types
from pathlib import Path

from common.mutations import mutated
from minitransformer.kernels.cpu import compiling


def compile_changed(monkeypatch, name, old, new, part=None):
    """Return the module ``name`` of ``kernels.cpu`` with ``old`` replaced by ``new``, as ``mutated`` does."""
    monkeypatch.setattr(compiling, "cache_folder", _no_folder)
    path = Path(importlib.import_module(f"minitransformer.kernels.cpu.{name}").__file__)
    changed = types.ModuleType(f"changed_{name}")
    source = mutated(path.read_text(encoding="utf-8"), old, new, part)
    exec(compile(source, str(path), "exec"), changed.__dict__)
    return changed


def _no_folder():
    raise OSError("a changed kernel is not cached")
