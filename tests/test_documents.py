"""What is written about the code is true of it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from common.budgets import BUDGETS, REPORTED_FROM, seconds_by_row, table_of_times

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minitransformer"
README = (ROOT / "README.md").read_text(encoding="utf-8")
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


def test_the_readme_shows_what_the_first_command_prints():
    from minitransformer.command.display import describe_recipe, describe_score
    from minitransformer.recipes import load_recipe

    recipe = load_recipe("python")
    assert f"recipe    {describe_recipe(recipe, None)}\n" in README
    score = {"bytes": 250_623, "bits_per_byte": 1.877, "xz_bits_per_byte": 1.791, "val_loss": 1.3009}
    assert describe_score(score) in README.replace("\n", " ")


def test_the_links_of_the_documents_lead_somewhere():
    for document in ("README.md", "ARCHITECTURE.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{document}: {target}"


def test_each_folder_of_tests_has_a_budget_and_all_together_twelve_minutes():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| tests \| seconds \|\n\|---\|---\|\n(.*?)\n\n", text, flags=re.DOTALL)
    rows = dict(re.findall(r"\| `?([\w. ]+?)/?`? \| (\d+) \|", table))
    assert rows == {row: str(seconds) for row, seconds in BUDGETS.items()}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders == {row for row in BUDGETS if "." not in row and " " not in row}
    assert sum(BUDGETS.values()) <= 720


def test_a_long_run_says_what_each_folder_took():
    reports = [
        SimpleNamespace(nodeid=f"{path}::test", duration=REPORTED_FROM / 2)
        for path in ("tests/kernels/test_a.py", "tests/kernels/test_b.py", "tests/test_root.py")
    ]
    failed_to_collect = SimpleNamespace(nodeid="tests/data/test_text.py")
    seconds = seconds_by_row([*reports, failed_to_collect])
    assert seconds == {"kernels": REPORTED_FROM, "the other files": REPORTED_FROM / 2}
    first, second = table_of_times(seconds)
    assert first.split() == ["60", "s", "of", str(BUDGETS["kernels"]), "s", "kernels"]
    assert second.endswith("the other files")
    assert table_of_times(seconds_by_row(reports[:1])) == []


def test_the_tests_that_the_architecture_names_exist():
    """ "NAME there" is in the file of its own row, a name with :: in the file before it."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\btest_\w+(?!\w|\.py|\*)", text)) - {"test_kernel_NAME"}
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 10
    for name in named:
        assert f"def {name}(" in sources, name
    folders = "minitransformer", "kernels", "tests", "tutorials"
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    for path in re.findall(r"`((?:tests/)?[\w/]+\.(?:py|toml))(?:::\w+)?`", text):
        if not re.search("NAME|LAYOUT", path):
            assert any(file.match(path) for file in files), path


def test_cupy_is_imported_in_one_place():
    files = [path for path in PACKAGE.rglob("*.py") if re.search(r"import cupy|\"cupy\"", path.read_text())]
    assert files == [PACKAGE / "arrays.py"]


def test_nothing_is_pickled():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"pickle|np\.load\(|np\.save", path.read_text()), path
