"""What is written about the code is true of it."""

import re
from pathlib import Path

import pytest

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


def test_the_links_of_the_documents_lead_somewhere():
    for document in ("README.md", "ARCHITECTURE.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{document}: {target}"


def test_cupy_is_imported_in_one_place():
    files = [path for path in PACKAGE.rglob("*.py") if re.search(r"import cupy|\"cupy\"", path.read_text())]
    assert files == [PACKAGE / "arrays.py"]


def test_nothing_is_pickled():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"pickle|np\.load\(|np\.save", path.read_text()), path
