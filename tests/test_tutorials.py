"""Every tutorial runs from start to end, its exercises fail as stubs and pass as solved."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

FOLDER = Path(__file__).parent.parent / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FOLDED = re.compile(
    r"<details>\n<summary>A solution of exercise \d\.\d</summary>\n\n```python\n(.*)\n```\n\n</details>",
    re.DOTALL,
)
CHECKED = re.compile(r"exercise [\d.]+: (passed|not yet)")


def run(notebook):
    """Execute a copy of ``notebook``, each cell within 90 seconds."""
    copy = nbformat.from_dict(notebook)
    NotebookClient(copy, timeout=90, resources={"metadata": {"path": str(FOLDER)}}).execute()
    return copy


def with_solutions(notebook):
    """Return a copy where each check is followed by its solution, the check again, and the stub again."""
    copy = nbformat.from_dict(notebook)
    parts = (tagged(copy, tag) for tag in ("exercise", "exercise-check", "solution"))
    for exercise, check, solution in zip(*parts, strict=True):
        sources = FOLDED.fullmatch(solution.source).group(1), check.source, exercise.source
        place = copy.cells.index(check) + 1
        copy.cells[place:place] = map(new_code_cell, sources)
    return copy


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


def verdicts(notebook):
    return CHECKED.findall("".join(texts(notebook)))


def texts(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            yield output.get("text", "")


def shown_sources(notebook):
    return [
        output.data["text/markdown"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "text/markdown" in output.get("data", {})
    ]


def test_there_are_tutorials():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_tutorial(path):
    committed = nbformat.read(path, as_version=4)
    count = len(tagged(committed, "exercise"))
    assert count >= 2

    done = run(with_solutions(committed))  # once: between the checks it is as a reader finds it
    assert verdicts(done) == ["not yet", "passed"] * count
    assert shown_sources(done) == shown_sources(committed), "the library changed: run the notebook again"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_tutorial_is_committed_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert verdicts(notebook) == ["not yet"] * len(tagged(notebook, "exercise"))
    kinds = {output.output_type for cell in notebook.cells for output in cell.get("outputs", ())}
    assert "error" not in kinds
    assert "display_data" in kinds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solutions_are_folded_below_their_checks_where_every_viewer_shows_them(path):
    notebook = nbformat.read(path, as_version=4)
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", ())]
    assert tags == ["exercise", "exercise-check", "solution"] * (len(tags) // 3)
    for cell in tagged(notebook, "solution"):
        assert cell.cell_type == "markdown"
        before = notebook.cells[notebook.cells.index(cell) - 1]
        assert before.metadata.tags == ["exercise-check"]
    assert "(Stuck? A solution is folded away below each" in "".join(cell.source for cell in notebook.cells)


def test_what_notebooks_draw_with_stands_in_one_module():
    tree = ast.parse((FOLDER / "drawing.py").read_text(encoding="utf-8"))
    shared = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {"draw", "show", "show_code"} <= shared
    for path in NOTEBOOKS:
        code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        assert not shared & set(re.findall(r"def (\w+)\(", code)), path.name
