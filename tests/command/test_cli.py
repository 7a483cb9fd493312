"""The command line, as its own process: a run from end to end, and one clear line for every mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from common.command_line import SETTINGS, TEXT, command, minitransformer
from common.processes import running

from minitransformer import __version__
from minitransformer.recipes import load_recipe

TASK = ["--set", "max_steps=3", "--set", "layers=1"]


COMPILE = """
import numpy as np
from minitransformer import dispatch, functional
q = np.ones((1, 256, 1, 16), np.float32)
dispatch.attention_backward(*dispatch.attention(q, q, q, mask=functional.causal_mask(256)))
"""


@pytest.fixture(scope="module")
def compiled_kernels():
    """Let nothing be said of compiling: whoever needs kernels finds them in the tests' cache."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compiled_kernels):
    """A folder with a text, and a small model trained on it in ``model``."""
    root = tmp_path_factory.mktemp("cli")
    (root / "text.txt").write_text(TEXT)
    done = minitransformer(
        "train", "shakespeare", "--data", "text.txt", "--output-dir", "model", *SETTINGS, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "step 20: training loss" in done.stdout
    assert "xz -9 needs" in done.stdout
    assert "Lower is better: a uniform guess needs 8 bits per byte" in done.stdout
    assert "trained on " in done.stdout.splitlines()[0]
    assert "minitransformer generate model --prompt" in done.stdout
    assert "Done in 0.0" not in done.stdout
    return root


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


def test_generate(folder):
    arguments = "generate", "model", "--prompt", "the ", "--max-new-tokens", 30, "--seed", 3
    first = minitransformer(*arguments, cwd=folder)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("the ")
    assert len(first.stdout) == len("the ") + 30 + 1
    assert minitransformer(*arguments, cwd=folder).stdout == first.stdout
    assert minitransformer(*arguments, "--top-k", 1, "--top-p", 0.5, cwd=folder).returncode == 0


def test_several_samples_each_with_a_seed_of_its_own(folder):
    arguments = "generate", "model", "--prompt", "the ", "--max-new-tokens", 20, "--seed", 3
    texts = [minitransformer(*arguments[:-1], seed, cwd=folder).stdout for seed in (3, 4, 5)]
    assert len(set(texts)) == 3
    expected = "".join(
        f"--- sample {number} of 3, seed {number + 2} ---\n{text}" for number, text in enumerate(texts, 1)
    )
    done = minitransformer(*arguments, "--num-samples", 3, cwd=folder)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", expected)


def test_a_text_stops_generation(folder):
    arguments = "generate", "model", "--prompt", "the ", "--max-new-tokens", 60
    whole = minitransformer(*arguments, cwd=folder).stdout
    written = whole.removeprefix("the ")
    stop = written[20:23]
    done = minitransformer(*arguments, "--stop", "QUEEN", "--stop", stop, cwd=folder)
    assert done.stdout == "the " + written[: written.index(stop)] + "\n"


def test_prompts_are_read_line_by_line(folder):
    arguments = "generate", "model", "--max-new-tokens", 9
    expected = [
        minitransformer(*arguments, "--prompt", prompt, "--seed", seed, cwd=folder).stdout
        for seed, prompt in enumerate(["the ", "fox", "", "fox"])
    ]
    assert expected[1] != expected[3]
    done = minitransformer(
        *arguments, "--interactive", "--prompt", "the ", cwd=folder, input="fox\n\nQUEEN\nfox"
    )
    assert done.stdout == "".join(expected[:3]) + expected[3]
    assert done.stderr.startswith("minitransformer: error: the text has characters that the model never saw")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1, "a line was not answered"
    done = minitransformer(*arguments, "--interactive", "--num-samples", 2, cwd=folder, input="fox\nthe \n")
    assert [line for line in done.stdout.splitlines() if line.startswith("---")] == [
        *("--- sample 1 of 2, seed 0 ---", "--- sample 2 of 2, seed 1 ---"),
        *("--- sample 1 of 2, seed 2 ---", "--- sample 2 of 2, seed 3 ---"),
    ]
    assert (done.returncode, done.stderr) == (0, "")


def test_lines_that_are_no_text_are_told_apart(folder):
    done = subprocess.run(
        command("generate", "model", "--interactive", "--max-new-tokens", 3),
        cwd=folder,
        input=b"caf\xe9\nfox\n",
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith(b"fox")
    assert done.stderr == b"minitransformer: error: the line is not UTF-8 text\n"


def test_an_interrupt_ends_an_answer_and_not_the_program(folder):
    with running(
        command("generate", "model", "--interactive", "--max-new-tokens", 10_000_000),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as answering:
        for prompt in (b"fox fox", b"dog dog"):
            answering.stdin.write(prompt + b"\n")
            answering.stdin.flush()
            written = b""
            while prompt not in written or len(written) < 40:
                written += os.read(answering.stdout.fileno(), 1)
            answering.send_signal(signal.SIGINT)
        _, errors = answering.communicate(timeout=60)
    assert (answering.returncode, errors) == (0, b"")


@pytest.mark.parametrize(
    "arguments", [("generate", "model", "--max-new-tokens", 100_000), ("recipes",)], ids=["long", "short"]
)
def test_a_reader_that_leaves_early(folder, arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with running(
        command(*arguments),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as generating:
        generating.stdout.close()
        errors = generating.stderr.read()
        assert generating.wait(timeout=60) == 1
    assert errors == ""


def test_text_of_any_script_on_a_terminal_of_another(folder):
    (folder / "cyrillic.txt").write_text("Все счастливые семьи похожи друг на друга. " * 20, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = minitransformer(
        *("train", "shakespeare", "--data", "cyrillic.txt", "--output-dir", "cyrillic", *SETTINGS),
        cwd=folder,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_kernels_are_chosen(folder, tmp_path, kernels):
    environment = {**os.environ, "MINITRANSFORMER_CACHE": str(tmp_path)}
    wide = "context_length=64", "width=64", "layers=1", "max_steps=1"
    done = minitransformer(
        *("train", "shakespeare", "--data", "text.txt", "--output-dir", tmp_path / "wide"),
        *("--kernels", kernels, *(part for setting in wide for part in ("--set", setting))),
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    fused = kernels == "fused"
    assert ("compiling attention_forward" in done.stderr) == fused
    assert bool(list(tmp_path.glob("kernels-*"))) == fused


def test_no_such_kernels(folder):
    done = minitransformer("evaluate", "model", "--kernels", "fast", cwd=folder)
    assert done.returncode == 2
    assert "'fused', 'reference'" in done.stderr


def test_evaluate(folder):
    def score(*arguments):
        done = minitransformer("evaluate", "model", *arguments, cwd=folder)
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


def test_recipes_and_info():
    listed = minitransformer("recipes")
    assert listed.returncode == 0
    assert {line.split()[0] for line in listed.stdout.splitlines()} >= {"python", "shakespeare"}
    shown = minitransformer("info")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("minitransformer", "numpy", "BLAS", "threads", "GPU"))


def test_the_output_folder_has_a_name_of_its_own_each_time(folder):
    for name in ("runs/shakespeare", "runs/shakespeare-2"):
        done = minitransformer(
            "train", "shakespeare", "--data", "text.txt", *SETTINGS, "--set", "max_steps=0", cwd=folder
        )
        assert done.returncode == 0, done.stderr
        assert (folder / name / "model.safetensors").exists()


def mistakes():
    train = "train", "shakespeare", "--output-dir", "new"
    yield "recipe", ("train", "pyton"), "there is no recipe 'pyton'; did you mean 'python'?"
    yield "setting", ("train", "--set", "max_step=1"), "did you mean 'max_steps'?"
    yield "heads", (*train, "--set", "heads=3"), "cannot be divided into 3 heads"
    yield "no data", train, "give it with --data PATH"
    yield "missing data", (*train, "--data", "none.txt"), "there is no file none.txt"
    yield "empty data", (*train, "--data", "empty.txt"), "empty.txt is empty"
    yield "bytes", (*train, "--data", "bytes.txt"), "byte 0xff at offset 2"
    yield "short", (*train, "--data", "short.txt"), "the text is too short"
    yield "device", (*train, "--data", "text.txt", "--device", "tpu"), "no device 'tpu'"
    yield (
        "folder",
        ("train", "shakespeare", "--data", "text.txt", "--output-dir", "model"),
        "holds another run",
    )
    yield "file", ("train", "shakespeare", "--data", "text.txt", "--output-dir", "text.txt"), "is a file"
    yield "memory", (*train, "--data", "text.txt", "--set", "width=20000000"), "not enough memory"
    yield "no model", ("generate", "nowhere"), "there is no folder nowhere"
    yield "not a model", ("evaluate", "."), "config.json is missing"
    yield "unknown characters", ("generate", "model", "--prompt", "QUEEN"), "never saw: 'E' (U+0045)"
    yield "seed", ("generate", "model", "--seed", -1), "seed is -1; expected at least 0"
    yield "temperature", ("generate", "model", "--temperature", -1), "temperature is -1"
    yield "empty stop", ("generate", "model", "--stop", ""), "stop is ''; expected text"
    yield "no samples", ("generate", "model", "--num-samples", 0), "num_samples is 0; expected at least 1"
    yield (
        "same samples",
        ("generate", "model", "--num-samples", 2, "--temperature", 0),
        "at temperature 0 all 2 samples would be the same",
    )
    yield "other text", ("evaluate", "model", "--data", "bytes.txt"), "is not UTF-8"


@pytest.mark.parametrize(
    ("arguments", "message"), [pytest.param(*case, id=name) for name, *case in mistakes()]
)
def test_a_mistake_is_answered_by_one_line(folder, arguments, message):
    (folder / "empty.txt").write_bytes(b"")
    (folder / "bytes.txt").write_bytes(b"ab\xff")
    (folder / "short.txt").write_text("too short")
    done = minitransformer(*arguments, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("minitransformer: error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (folder / "new").exists()


def test_cuda_without_a_gpu(folder):
    done = minitransformer("generate", "model", "--device", "cuda", cwd=folder, env=without_gpu())
    assert done.returncode == 1
    assert done.stderr.startswith("minitransformer: error: device 'cuda' needs")
    assert done.stderr.count("\n") == 1


def without_gpu():
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}


def test_divergence_keeps_the_last_good_weights(folder):
    done = minitransformer(
        *("train", "shakespeare", "--data", "text.txt", "--output-dir", "diverged", *SETTINGS),
        *("--set", "learning_rate=1e10", "--set", "max_grad_norm=0", "--set", "warmup_steps=0"),
        *("--set", "save_steps=1", "--set", "optim=sgd"),
        cwd=folder,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("minitransformer: error: training diverged at step ")
    assert done.stderr.count("\n") == 1
    assert "diverged keeps the checkpoint of step " in done.stderr
    evaluated = minitransformer("evaluate", "diverged", cwd=folder)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "this is its checkpoint-" in evaluated.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(folder, sent, code):
    name = f"stopped-{code}"
    metrics = folder / name / "metrics.jsonl"
    with running(
        command(
            *("train", "shakespeare", "--data", "text.txt", "--output-dir", name, *SETTINGS),
            *("--set", "max_steps=100000", "--set", "eval_steps=100000", "--set", "save_steps=100000"),
        ),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as training:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        training.send_signal(sent)
        output, errors = training.communicate(timeout=60)
    assert training.returncode == code
    assert errors == "\nstopping after this step; once more stops at once\n"
    assert f"{name} holds the last checkpoint" in output
    assert f"train --resume --output-dir {name}" in output
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    (saved,) = (folder / name).glob("checkpoint-*")
    assert int(saved.name.partition("-")[2]) >= last >= 40
    assert minitransformer("generate", name, "--max-new-tokens", 3, cwd=folder).returncode == 0


def test_a_stopped_run_is_resumed_with_its_own_settings(folder):
    settings = *SETTINGS, "--set", "max_steps=20", "--set", "seed=7"
    started = minitransformer(
        "train", "shakespeare", "--data", "text.txt", "--output-dir", "going", *settings, cwd=folder
    )
    assert started.returncode == 0, started.stderr
    resumed = minitransformer(
        "train", "--resume", "--output-dir", "going", "--set", "max_steps=30", cwd=folder
    )
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "resumed after step 20" in resumed.stdout
    lines = [json.loads(line) for line in (folder / "going" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20, 30]
    assert json.loads((folder / "going" / "run.json").read_text())["recipe"]["training"]["seed"] == 7

    again = minitransformer("train", "--resume", "--output-dir", "going", cwd=folder)
    assert (again.returncode, again.stderr) == (0, "")
    other = minitransformer("train", "sort", "--resume", "--output-dir", "going", cwd=folder)
    assert "holds a run of the recipe 'shakespeare', not of 'sort'" in other.stderr
    changed = minitransformer("train", "--resume", "--output-dir", "going", "--set", "seed=8", cwd=folder)
    assert "seed is 8, but the run to be resumed has 7" in changed.stderr
    retold = minitransformer(
        "train", "--resume", "--output-dir", "going", "--set", "tokenizer=bpe", cwd=folder
    )
    assert "vocabulary_size is 0" in retold.stderr
    widened = minitransformer("train", "--resume", "--output-dir", "going", "--set", "width=32", cwd=folder)
    assert "holds another model" in widened.stderr


def test_resume_with_nothing_saved_starts_from_the_beginning(folder):
    """As after a kill before the first checkpoint."""
    run = folder / "fresh"
    run.mkdir()
    recipe = load_recipe("sort", ["max_steps=3", "layers=1"])
    (run / "run.json").write_text(json.dumps({"recipe": recipe.table(), "data": []}))
    (run / "metrics.jsonl").write_text("")
    done = minitransformer("train", "sort", "--resume", "--output-dir", "fresh", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "there is no checkpoint in fresh: starting from the beginning" in done.stdout
    assert re.search(r"\d+ of 182 validation examples correct\.", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output-dir", "modle"], "there is no run in modle to go on with; did you mean model"),
        (["--output-dir", "model/checkpoint-20"], "did you mean model?"),
        (["--output-dir", "zzz"], "there is no run in zzz to go on with; there are "),
        (["--output-dir", "nowhere/run"], "to go on with; leave out --resume to start one"),
        (["addition"], "there is no run in runs/addition to go on with"),
    ],
)
def test_resuming_what_is_not_there_starts_nothing(folder, arguments, message):
    before = sorted(folder.rglob("*"))
    done = minitransformer("train", *arguments, "--resume", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("minitransformer: error: ")
    assert message in done.stderr
    assert sorted(folder.rglob("*")) == before


def test_a_run_is_overwritten_by_a_setting_and_resumed_without_harm(folder):
    def train(*arguments):
        return minitransformer("train", *arguments, "--output-dir", "again", *TASK, cwd=folder)

    first = train("sort")
    assert first.returncode == 0, first.stderr
    assert "holds another run" in train("sort").stderr
    written = (folder / "again" / "checkpoint-3").stat().st_mtime_ns
    done = train("sort", "--set", "overwrite_output_dir=true")
    assert (done.returncode, done.stderr) == (0, "")
    overwritten = (folder / "again" / "checkpoint-3").stat().st_mtime_ns
    assert overwritten > written
    (folder / "again" / "notes.txt").write_text("mine")
    assert '"overwrite_output_dir": false' in (folder / "again" / "run.json").read_text()
    resumed = train("--resume", "--set", "overwrite_output_dir=true")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert (folder / "again" / "checkpoint-3").stat().st_mtime_ns == overwritten
    assert (folder / "again" / "notes.txt").read_text() == "mine"


def test_a_task_from_end_to_end(folder):
    done = minitransformer("train", "sort", "--output-dir", "sort", *TASK, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    score = json.loads(minitransformer("evaluate", "sort", cwd=folder).stdout)
    assert score["examples"] == 182
    assert score["exact_match"] == score["correct"] / 182
    generated = minitransformer("generate", "sort", "--prompt", "201102", cwd=folder).stdout
    assert len(generated) == 12 + 1
    assert generated == minitransformer("generate", "sort", "--prompt", "201102", cwd=folder).stdout
    assert (
        "makes its own examples"
        in minitransformer("evaluate", "sort", "--data", "text.txt", cwd=folder).stderr
    )


def test_folders_and_patterns_are_texts_too(folder):
    books = folder / "books"
    books.mkdir()
    for number in range(3):
        (books / f"{number}.txt").write_text(TEXT)
    for data in ("books", "books/*.txt"):
        done = minitransformer(
            *("train", "shakespeare", "--data", data, "--output-dir", f"of {data[-3:]}", *SETTINGS),
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr
    sources = [json.loads((folder / f"of {end}" / "corpus.json").read_text()) for end in ("oks", "txt")]
    assert sources[0]["sha256"] == sources[1]["sha256"]


def test_byte_pairs_from_end_to_end(folder):
    done = minitransformer(
        *("train", "shakespeare", "--data", "text.txt", "--output-dir", "pairs", *SETTINGS),
        *("--set", "tokenizer=bpe", "--set", "vocabulary_size=270"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    score = json.loads(minitransformer("evaluate", "pairs", cwd=folder).stdout)
    assert 0 < score["tokens"] < score["bytes"]
    assert minitransformer("generate", "pairs", "--prompt", "QUEEN né", cwd=folder).returncode == 0


def test_the_cost_of_a_recipe():
    done = minitransformer("recipes", "sort", "--set", "layers=1")
    assert done.returncode == 0, done.stderr
    assert 'tokenizer = "characters"' in done.stdout
    assert re.search(
        r"^time +\d+(\.\d)?( to \d+(\.\d)?)? (seconds|minutes|hours)$", done.stdout, re.MULTILINE
    )
    for part in ("layers = 1", "parameters  ", "2,000 steps, 1,408,000 tokens", "FLOPs", "GB", "time  "):
        assert part in done.stdout


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(folder):
    """A limit on the size of files stands in for the disk: the weights do not fit, the rest does."""
    import resource

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = minitransformer(
        *("train", "shakespeare", "--data", "text.txt", "--output-dir", "full", *SETTINGS),
        cwd=folder,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("minitransformer: error: ")
    assert done.stderr.count("\n") == 1
    assert not list((folder / "full").glob(".*")), "a temporary file was left behind"
