"""The command line: runs from end to end."""

import json
import os
import re

from common.command_line import SETTINGS, TASK, TEXT, answer, minitransformer

from minitransformer import __version__
from minitransformer.kernels import KERNELS


def test_the_output_folder(folder):
    model = folder / "model"
    assert sorted(path.name for path in model.iterdir()) == [
        "checkpoint-20",
        "checkpoint-30",
        "config.json",
        "corpus.json",
        "generation_config.json",
        "metrics.jsonl",
        "model.safetensors",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.png",
    ]
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20, 30]
    names = {"step", "train_loss", "val_loss", "learning_rate", "gradient_norm", "tokens_per_second"}
    assert all(set(line) == names for line in lines)
    assert lines[-1]["val_loss"] < lines[0]["val_loss"]
    assert (model / "training.png").read_bytes().startswith(b"\x89PNG")
    ours = json.loads((model / "config.json").read_text())["minitransformer"]
    assert (ours["recipe"], ours["step"]) == ("shakespeare", 30)


def test_text_of_any_script_on_a_terminal_of_another(folder):
    (folder / "cyrillic.txt").write_text("Все счастливые семьи похожи друг на друга. " * 20, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = minitransformer(
        *("train", "shakespeare", "--data", "cyrillic.txt", "--output-dir", "cyrillic", *SETTINGS),
        cwd=folder,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_kernels_are_chosen(folder, tmp_path):
    """By whether they are compiled, where nothing was: by ``evaluate`` the forward pass alone."""
    wide = "context_length=64", "width=64", "layers=1", "max_steps=1"
    settings = [part for setting in wide for part in ("--set", setting)]
    (tmp_path / "long.txt").write_text(20 * TEXT)
    train = "train", "shakespeare", "--data", "text.txt", "--output-dir", tmp_path / "wide", *settings
    evaluate = "evaluate", tmp_path / "wide", "--data", tmp_path / "long.txt"
    for arguments, kernels in ((train, "reference"), (evaluate, "fused")):
        environment = {**os.environ, "MINITRANSFORMER_CACHE": str(tmp_path)}
        done = minitransformer(*arguments, "--kernels", kernels, cwd=folder, env=environment)
        assert done.returncode == 0, done.stderr
        fused = kernels == "fused"
        assert ("compiling attention_forward" in done.stderr) == fused
        assert bool(list(tmp_path.glob("kernels-*"))) == fused


def test_evaluate(folder):
    def score(*arguments):
        done = answer("evaluate", "model", *arguments, cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    own = score()
    assert own["text"] == "validation"
    assert own["tokens"] == len(TEXT) - int(0.9 * len(TEXT)) - 1
    assert score("--data", "text.txt") == own
    (folder / "other.txt").write_text(TEXT[:100])
    other = score("--data", "other.txt")
    assert (other["text"], other["tokens"]) == ("whole", 99)


def test_the_version():
    shown = minitransformer("--version")
    assert (shown.returncode, shown.stdout) == (0, f"minitransformer {__version__}\n")


def test_recipes_and_info(tmp_path):
    listed = answer("recipes", cwd=tmp_path)
    assert listed.returncode == 0
    assert {line.split()[0] for line in listed.stdout.splitlines()} >= {"python", "shakespeare"}
    shown = answer("info", cwd=tmp_path)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("minitransformer", "numpy", "BLAS", "threads", "GPU"))
    for name, registered in KERNELS.items():
        for kernel in registered:
            assert f"{name}: {', '.join(kernel.types)} by {kernel.module}" in shown.stdout


def test_the_output_folder_has_a_name_of_its_own_each_time(folder):
    for name in ("runs/shakespeare", "runs/shakespeare-2"):
        done = answer(
            "train", "shakespeare", "--data", "text.txt", *SETTINGS, "--set", "max_steps=0", cwd=folder
        )
        assert done.returncode == 0, done.stderr
        assert (folder / name / "model.safetensors").exists()


def test_a_task_from_end_to_end(folder):
    done = answer("train", "sort", "--output-dir", "sort", *TASK, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    score = json.loads(answer("evaluate", "sort", cwd=folder).stdout)
    assert score["examples"] == 182
    assert score["exact_match"] == score["correct"] / 182
    generated = answer("generate", "sort", "--prompt", "201102", cwd=folder).stdout
    assert len(generated) == 12 + 1
    assert generated == answer("generate", "sort", "--prompt", "201102", cwd=folder).stdout
    assert "makes its own examples" in answer("evaluate", "sort", "--data", "text.txt", cwd=folder).stderr


def test_folders_and_patterns_are_texts_too(folder):
    books = folder / "books"
    books.mkdir()
    for number in range(3):
        (books / f"{number}.txt").write_text(TEXT)
    for data in ("books", "books/*.txt"):
        done = answer(
            *("train", "shakespeare", "--data", data, "--output-dir", f"of {data[-3:]}", *SETTINGS),
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr
    sources = [json.loads((folder / f"of {end}" / "corpus.json").read_text()) for end in ("oks", "txt")]
    assert sources[0]["sha256"] == sources[1]["sha256"]


def test_byte_pairs_from_end_to_end(folder):
    done = answer(
        *("train", "shakespeare", "--data", "text.txt", "--output-dir", "pairs", *SETTINGS),
        *("--set", "tokenizer=bpe", "--set", "vocabulary_size=270"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    score = json.loads(answer("evaluate", "pairs", cwd=folder).stdout)
    assert 0 < score["tokens"] < score["bytes"]
    assert answer("generate", "pairs", "--prompt", "QUEEN né", cwd=folder).returncode == 0


def test_the_cost_of_a_recipe(tmp_path):
    done = answer("recipes", "sort", "--set", "layers=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'tokenizer = "characters"' in done.stdout
    assert re.search(
        r"^time +\d+(\.\d)?( to \d+(\.\d)?)? (seconds|minutes|hours)$", done.stdout, re.MULTILINE
    )
    for part in ("layers = 1", "parameters  ", "2,000 steps, 1,408,000 tokens", "FLOPs", "GB", "time  "):
        assert part in done.stdout
