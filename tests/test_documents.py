"""What is written about the code is true of it."""

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"
PACKAGE = ROOT / "minitransformer"

# from the bottom to the top; each imports only from itself and from those before it
LAYERS = [
    "errors",
    "system",
    "arrays",
    "functional",
    "kernels",
    "dispatch",
    "parameters",
    "layers",
    "models",
    "gradcheck",
    "data",
    "pretrained",
    "evaluation",
    "generation",
    "inspection",
    "training",
    "recipes",
    "command",
    "__main__",
]


NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]\d+)?")


def python_blocks():
    """Return every example, and what the README says that it prints, or nothing."""
    found = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, flags=re.DOTALL)
    assert len(found) == README.count("```python")
    return found


def test_the_readme_has_the_two_commands():
    first, second = re.findall(r"```\n(python3 -m venv .*)\n```", README)
    assert first == "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/minitransformer train"
    assert second == 'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/pytest'


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_the_readmes_examples_run(number, tmp_path, monkeypatch, capsys):
    from minitransformer.data import character_tokenizer
    from minitransformer.models import GPT, GPTConfig
    from minitransformer.pretrained.model_folder import save_model

    folder = tmp_path / "runs" / "python"  # the folder that the first command leaves
    folder.mkdir(parents=True)
    tokenizer = character_tokenizer("def fgh")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_model(GPT(GPTConfig(tokenizer.get_vocab_size(), 8, 1, 1, 8)).build(), folder)
    monkeypatch.chdir(tmp_path)
    example, shown = python_blocks()[number]
    exec(compile(example, "README.md", "exec"), {})
    printed = NUMBER.sub("#", capsys.readouterr().out)
    assert printed
    for part in shown.split("…\n"):  # figures differ in their last digits from machine to machine
        assert NUMBER.sub("#", part) in printed


def test_the_links_of_the_documents_lead_somewhere():
    for document in ("README.md", "ARCHITECTURE.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{document}: {target}"


def test_imports_go_down():
    place = {name: height for height, name in enumerate(LAYERS)}
    kernels = [(path, "kernels") for path in (ROOT / "kernels").rglob("*.py")]
    others = [(path, path.relative_to(PACKAGE).with_suffix("").parts[0]) for path in PACKAGE.rglob("*.py")]
    for path, own in kernels + others:
        if own == "__init__":
            continue
        for imported in imported_modules(path):
            assert place[imported] <= place[own], f"{path.relative_to(ROOT)} imports {imported}"


def imported_modules(path):
    """Yield the modules of the package that ``path`` imports, by their first name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minitransformer"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def test_kernels_are_named_by_dispatch_and_info_alone():
    naming = {path.stem for path in PACKAGE.rglob("*.py") if "kernels" in imported_modules(path)}
    assert naming == {"dispatch", "info"}


def test_cupy_is_imported_in_one_place():
    files = [path for path in PACKAGE.rglob("*.py") if re.search(r"import cupy|\"cupy\"", path.read_text())]
    assert files == [PACKAGE / "arrays.py"]


def test_nothing_is_pickled():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"pickle|np\.load\(|np\.save", path.read_text()), path


@pytest.mark.parametrize("name", ["block.svg", "architecture.svg"])
def test_pictures_say_in_every_viewer_what_they_say_in_a_browser(name):
    """Some viewers draw no markers, hide a short line under its arrowhead, and swallow leading spaces."""
    picture = ElementTree.parse(ROOT / name).getroot()
    tags = [element.tag.partition("}")[2] for element in picture.iter()]
    assert "marker" not in tags
    assert not any(text.text.startswith(" ") for text in picture.iter(SVG + "text"))
    arrows = [group for group in picture.iter(SVG + "g") if group.get("class") == "arrow"]
    assert len(arrows) >= 8
    for shaft, head in arrows:
        *_, before, end = corners(shaft)
        tip, left, right = corners(head)
        base = (left + right) / 2
        np.testing.assert_allclose(end, base, atol=0.1)
        length = np.linalg.norm(tip - base)
        assert np.linalg.norm(end - before) >= length
        np.testing.assert_allclose(
            tip - base, (end - before) * length / np.linalg.norm(end - before), atol=0.1
        )


def corners(path):
    """Return the corners (n, 2) of a path of straight lines between given points."""
    return np.array([point.split() for point in re.split("[ML]", path.get("d").rstrip("Z"))[1:]], float)
