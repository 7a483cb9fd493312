"""What imports what in the package, read from its source.

``LAYERS`` is the order in which the parts of the package build upon each other. The architecture's picture
draws it, and a test holds every file to it.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minitransformer"
KERNELS = ROOT / "kernels"

LAYERS = [
    ("commands", ["__main__", "command"]),
    ("recipes", ["recipes"]),
    ("training", ["training"]),
    ("use of a model", ["inspection", "generation", "pretrained"]),
    ("models", ["models"]),
    ("verification", ["gradcheck"]),
    ("data and scores", ["evaluation", "data"]),
    ("layers", ["layers", "parameters"]),
    ("dispatch", ["dispatch"]),
    ("kernels", ["kernels"]),
    ("operations", ["functional"]),
    ("core", ["arrays", "system", "errors"]),
]
"""From the top to the bottom: the name of each layer, and its folders and files. Imports go down."""

ORDER = [part for _, parts in reversed(LAYERS) for part in parts[::-1]]
"""The folders and files from the bottom to the top."""


def modules():
    """Return every module of the package, by its dotted name, and its path."""
    found = {}
    for folder, prefix in ((PACKAGE, ""), (KERNELS, "kernels.")):
        for path in sorted(folder.rglob("*.py")):
            name = prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix("__init__").rstrip(".")] = path
    return found  # "" is the package itself


def part_of(module):
    """Return the folder or file of ``ORDER`` that a module such as "layers.basic" belongs to."""
    return module.partition(".")[0]


def imported_modules(module, known):
    """Return the modules among ``known`` (from ``modules``) that ``module`` imports, wherever in its file.

    They are found in import statements, at the top of the file or inside a function, in attributes of the
    package (``minitransformer.generate``), and in strings that are the full name of a module, by which
    modules are imported when they are first needed.
    """
    found = set()
    for node in ast.walk(ast.parse(known[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {_local(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= _imported_from(node, module, known)
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "minitransformer":
            found.add(public_names().get(node.attr, node.attr))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(_local(node.value))
    if module == "":
        found |= set(public_names().values())
    return (found & set(known)) - {module, ""}


def _imported_from(node, module, known):
    base = _local(node.module) if not node.level else _relative(node, module, known)
    if base is None:
        return set()
    names = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
    if base == "":
        names = {public_names().get(name, name) for name in names}
    submodules = names & set(known)
    return submodules | ({base} if len(submodules) < len(names) else set())


def _relative(node, module, known):
    parts = module.split(".") if module else []
    if known[module].name != "__init__.py":
        parts = parts[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *(node.module or "").split(".")]).strip(".")


def _local(name):
    """Return the name within the package of what is imported as ``name``, or None if it is not part of it."""
    package, _, rest = name.partition(".")
    return rest if package == "minitransformer" else None


def public_names():
    """Return the names that the package itself offers, and the module in which each is found."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "_WHERE":
            return ast.literal_eval(node.value)
    raise LookupError("minitransformer/__init__.py: no _WHERE, the table of the names loaded on first use")


def dynamic_imports(path):
    """Return the lines of ``path`` that import a module whose name is computed, so that none can read it."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", None)) in ("import_module", "__import__")
        and not (node.args and isinstance(node.args[0], ast.Constant))
    ]
