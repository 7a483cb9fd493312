"""A kernel's file with a mistake in it, compiled."""

import importlib
import types
from pathlib import Path

from common.mutations import mutated
from minitransformer.kernels.cpu import compiling


def compile_changed(monkeypatch, name, old, new, part):
    """Return the module ``name`` of ``kernels.cpu``, ``old`` replaced by ``new`` in its function ``part``.

    Nothing is compiled for a mistake in a function of Python, which calls the compiled ones as they are.
    """
    monkeypatch.setattr(compiling, "cache_folder", _no_folder)
    original = importlib.import_module(f"minitransformer.kernels.cpu.{name}")
    path = Path(original.__file__)
    changed = types.ModuleType(f"changed_{name}")
    source = mutated(path.read_text(encoding="utf-8"), old, new, part)
    exec(compile(source, str(path), "exec"), changed.__dict__)
    if isinstance(getattr(original, part), types.FunctionType):
        compiled = {n: v for n, v in vars(original).items() if isinstance(v, compiling.CompiledKernel)}
        vars(changed).update(compiled)
    return changed


def _no_folder():
    raise OSError("a changed kernel is not cached")
