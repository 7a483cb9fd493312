"""Every file imports only what stands below it, wherever in the file and however the import is written."""

from graphlib import TopologicalSorter

import pytest

from tutorials.source_imports import (
    KERNELS,
    ORDER,
    PACKAGE,
    dynamic_imports,
    imported_modules,
    modules,
    part_of,
)

MODULES = modules()


def test_imports_go_down():
    for module in filter(None, MODULES):
        for imported in imported_modules(module, MODULES):
            lower = ORDER.index(part_of(imported)) <= ORDER.index(part_of(module))
            assert lower, f"{module} imports {imported}, which stands above it in tutorials/source_imports.py"


def test_no_imports_go_in_a_circle():
    graph = {module: imported_modules(module, MODULES) for module in MODULES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the modules
    assert set(order) == set(MODULES)


def test_every_folder_and_file_of_the_package_stands_in_the_order():
    assert {part_of(module) for module in MODULES if module} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))
    assert "kernels.cpu.attention" in MODULES
    on_disk = [path for folder in (PACKAGE, KERNELS) for path in folder.rglob("*.py")]
    assert sorted(MODULES.values()) == sorted(on_disk)


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import minitransformer.layers.basic", {"layers.basic"}),
        ("from minitransformer.layers import Linear, basic", {"layers", "layers.basic"}),
        ("from minitransformer import dispatch", {"dispatch"}),
        ("from minitransformer import generate", {"generation.sampling"}),
        ("import minitransformer\nminitransformer.trace()", {"inspection.tracing"}),
        ("import minitransformer\nminitransformer.__version__", set()),
        ("def late():\n    from minitransformer.training import step", {"training.step"}),
        ("if TYPE_CHECKING:\n    from minitransformer.models import gpt", {"models.gpt"}),
        ("importlib.import_module('minitransformer.recipes.run')", {"recipes.run"}),
        ("TABLE = {'run': 'minitransformer.recipes.run'}", {"recipes.run"}),
        ("from . import writing", {"command.writing"}),
        ("from .writing import print", {"command.writing"}),
        ("from ..data import text", {"data.text"}),
        ("from ..data.text import read", {"data.text"}),
        ("import numpy, scipy.special\nfrom numpy import random", set()),
        ("'minitransformer trains'; 'minitransformer.nowhere'", set()),
    ],
)
def test_imports_are_found_wherever_they_are_written(source, imported, tmp_path):
    path = tmp_path / "console.py"
    path.write_text(source)
    assert imported_modules("command.console", MODULES | {"command.console": path}) == imported


def test_the_package_itself_imports_what_it_offers():
    offered = imported_modules("", MODULES)
    assert {"models", "training", "inspection.tracing", "generation.sampling"} <= offered
    folder = imported_modules("layers", MODULES)
    assert {"layers.attention", "layers.basic", "layers.blocks", "layers.cache"} <= folder


def test_modules_are_imported_by_names_that_can_be_read():
    """A computed name could lead upwards unseen; where there is one, the names are literals nearby."""
    computed = {module for module, path in MODULES.items() if dynamic_imports(path)}
    assert computed <= {"", "arrays", "kernels", "kernels.cpu.compiling", "pretrained.model_folder"}


def test_kernels_are_named_by_dispatch_and_info_alone():
    naming = {
        module
        for module in filter(None, MODULES)
        if part_of(module) != "kernels"
        and any(part_of(imported) == "kernels" for imported in imported_modules(module, MODULES))
    }
    assert naming == {"dispatch", "command.info"}
