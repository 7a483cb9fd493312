"""What is added to the package is registered everywhere, so that the tests that walk over tables find it.

ARCHITECTURE.md, "To add something", names these tests.
"""

import ast
import importlib
import re

import pytest

from minitransformer import dispatch, functional, kernels, layers, models
from minitransformer.models.table import ARCHITECTURES
from minitransformer.parameters import Layer
from minitransformer.recipes import list_recipes, load_recipe
from tutorials.source_imports import KERNELS, PACKAGE, ROOT, modules

OPERATIONS = {name for name in functional.__all__ if f"{name}_backward" in functional.__all__}
SINGLES = (set(functional.__all__) & set(vars(dispatch))) - OPERATIONS  # those without a backward
SINGLES = {name for name in SINGLES if not name.endswith("_backward")}
ABOVE_DISPATCH = [
    path for folder in ("layers", "models", "training") for path in (PACKAGE / folder).glob("*.py")
]


def defined(path, kind=ast.FunctionDef):
    """Return the public names of the functions or classes at the top of a file."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, kind) and not node.name.startswith("_")}


def pairs(path):
    """Return the operations of which a file defines forward and backward."""
    names = defined(path)
    return {name for name in names if f"{name}_backward" in names}


@pytest.mark.parametrize("path", sorted((PACKAGE / "functional").glob("*.py")), ids=lambda path: path.stem)
def test_every_pair_of_a_file_is_an_operation_of_functional(path):
    assert pairs(path) <= OPERATIONS, f"export it from functional/__init__.py: {pairs(path) - OPERATIONS}"
    alone = {name for name in defined(path) if name.endswith("_backward")}
    alone -= {f"{name}_backward" for name in pairs(path)}
    assert not alone, f"{path.name} has {alone}, but not the forward of the same name"


@pytest.mark.parametrize("path", sorted((PACKAGE / "functional").glob("*.py")), ids=lambda path: path.stem)
def test_every_operation_has_the_rules_of_all(path):
    """Half types, the check of types and ``add_to`` come from the decorators."""
    decorated = {
        node.name: {getattr(decorator, "id", None) for decorator in node.decorator_list}
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    for name in pairs(path):
        for function, decorator in ((name, "forward"), (f"{name}_backward", "backward")):
            assert decorator in decorated[function], f"{path.name}: put @{decorator} above {function}"


def test_dispatch_pairs_a_forward_with_its_own_backward():
    dispatched = {name.removesuffix("_backward") for name in vars(dispatch) if name.endswith("_backward")}
    assert dispatched <= OPERATIONS
    for name in dispatched:
        assert getattr(dispatch, name).__wrapped__ is getattr(functional, name)
        assert getattr(dispatch, f"{name}_backward").__wrapped__ is getattr(functional, f"{name}_backward")
    for name in SINGLES:
        assert getattr(dispatch, name).__wrapped__ is getattr(functional, name)


@pytest.mark.parametrize("path", ABOVE_DISPATCH, ids=lambda path: "/".join(path.parts[-2:]))
def test_layers_models_and_training_call_operations_by_dispatch(path):
    """Called on ``functional`` directly, an operation runs without kernels, and traces do not show it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    from_functional = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minitransformer.functional")
        for alias in node.names
    }
    direct = from_functional & (OPERATIONS | SINGLES | {f"{name}_backward" for name in OPERATIONS})
    assert not direct, f"{path.name}: call these of dispatch.py, not of functional: {direct}"
    called = {name for name in OPERATIONS if re.search(rf"dispatch\.{name}(_backward)?\b", path.read_text())}
    assert called <= set(vars(dispatch)), f"give it a _pair in dispatch.py: {called - set(vars(dispatch))}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "layers").glob("*.py")), ids=lambda path: path.stem)
def test_every_layer_of_a_file_is_exported(path):
    module = importlib.import_module(f"minitransformer.layers.{path.stem}")
    classes = [vars(module)[name] for name in defined(path, ast.ClassDef)]
    own = {layer.__name__ for layer in classes if issubclass(layer, Layer)}
    own -= {"Recomputed", "PackedLinear"}  # made by ``recompute`` and ``pack_layers``
    assert own <= set(layers.__all__), f"export it from layers/__init__.py: {own - set(layers.__all__)}"


def models_of(path):
    """Return the names of the models that a file of ``models`` defines."""
    module = importlib.import_module(f"minitransformer.models.{path.stem}")
    classes = [vars(module)[name] for name in defined(path, ast.ClassDef)]
    own = {model.__name__ for model in classes if hasattr(model, "loss") and issubclass(model, Layer)}
    return own - {"DecodingGPT"}  # made by ``GPT.for_decoding``


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda path: path.stem)
def test_every_model_of_a_file_is_exported_and_tested(path):
    own = models_of(path)
    assert own <= set(models.__all__), f"export it from models/__init__.py: {own - set(models.__all__)}"
    if own:
        tests = list((ROOT / "tests/models").glob(f"test_{path.stem}*.py"))
        assert tests, f"test {own} in tests/models/test_{path.stem}.py"


def test_every_model_has_a_row_and_a_layout():
    known = set().union(*map(models_of, (PACKAGE / "models").glob("*.py")))
    rows = {row.model.__name__ for row in ARCHITECTURES.values()}
    assert known == rows, f"give it a row in models/table.py: {known - rows}"
    for name, row in ARCHITECTURES.items():
        assert row.name == name, f"models/table.py: the row of {name!r} has the name {row.name!r}"
        layout = importlib.import_module(f"minitransformer.pretrained.{row.layout}")
        assert isinstance(layout.MODEL_TYPE, str)


def test_every_architecture_has_a_recipe():
    missing = set(ARCHITECTURES) - {load_recipe(name).architecture.name for name in list_recipes()}
    assert not missing, f"add a recipe to recipes/ with this architecture: {missing}"


def test_every_fused_pair_is_registered_and_tested():
    known = modules()
    registered = {
        kernel.module.removeprefix("minitransformer.") for row in kernels.KERNELS.values() for kernel in row
    }
    for module, path in known.items():
        if module.startswith("kernels."):
            fused = (pairs(path) & OPERATIONS) | (defined(path) & SINGLES)
            assert not fused or module in registered, f"{module}: give it a row in kernels/__init__.py"
    for operation, row in kernels.KERNELS.items():
        assert operation in OPERATIONS | SINGLES
        for kernel in row:
            file = kernel.module.rpartition(".")[2]
            tests = list((ROOT / "tests/kernels").glob(f"test_kernel_{file}*.py"))
            assert tests, f"test the kernel in tests/kernels/test_kernel_{file}.py"
            path = known[kernel.module.removeprefix("minitransformer.")]
            assert path.is_relative_to(KERNELS)
            assert operation in (pairs(path) if operation in OPERATIONS else defined(path))


def test_the_readme_names_every_recipe():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| recipe \|.*?\n\n", readme, flags=re.DOTALL)
    named = re.findall(r"`([a-z-]+)`", table)
    assert sorted(named) == list_recipes(), "the table of recipes in README.md has a row for each recipe"
