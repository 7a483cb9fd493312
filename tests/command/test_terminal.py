"""What a person sees of a run: words that fit the terminal, commands that can be copied, signs of life."""

import functools
import io
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from common.tiny_runs import tiny_trainer
from rich.console import Console

from minitransformer.command import display
from minitransformer.command.display import TerminalDisplay, describe_recipe, describe_score, suggest_commands
from minitransformer.data.text import open_text
from minitransformer.recipes import load_recipe
from minitransformer.system.terminal import fit_lines, format_duration, format_duration_range
from minitransformer.training import ProgressBar, progress

SCORE = {"bytes": 250_623, "bits_per_byte": 1.9041, "xz_bits_per_byte": 1.7911, "val_loss": 1.31977}
LINE = {"step": 20, "train_loss": 1.5, "val_loss": 1.75, "tokens_per_second": 104_321.4}


@pytest.fixture
def screen(monkeypatch):
    """What is printed, by functions of a width: as on a terminal, or for None as into a file."""

    def of_width(width):
        file = io.StringIO()
        settings = {"file": file, "width": width or 80, "force_terminal": width is not None}
        monkeypatch.setattr(progress, "Console", functools.partial(Console, **settings, color_system=None))
        return file

    return of_width


@pytest.fixture
def material(tmp_path):
    path = tmp_path / "a text.txt"
    path.write_text("I am what I amuse")
    source = {"corpus": "text", "paths": [str(path)]}
    return SimpleNamespace(prompt="", source=source, validation_text=open_text([path]))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0, "0.0 seconds"), (3.21, "3.2 seconds"), (9.949, "9.9 seconds"), (9.95, "10 seconds")),
        *((119.4, "119 seconds"), (119.5, "2.0 minutes"), (144, "2.4 minutes"), (7196, "119.9 minutes")),
        *((7197, "2.0 hours"), (86400, "24.0 hours")),
    ],
)
def test_durations(seconds, words):
    assert format_duration(seconds) == words


def test_spans():
    assert format_duration_range(108, 222) == "1.8 to 3.7 minutes"
    assert format_duration_range(23, 49) == "23 to 49 seconds"
    assert format_duration_range(9, 12) == "9.0 to 12 seconds"
    assert format_duration_range(144, 145) == "2.4 minutes"


@pytest.mark.parametrize("width", [20, 80, 120])
def test_lines_are_broken_between_words(width):
    text = "recipe    " + "some words, and a/path/that-is/longer/than/a/line.txt, then  more " * 3
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    lines = fit_lines(text, console, 10).split("\n")
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
    assert all(line.startswith(" " * 10) for line in lines[1:])


def test_commands_and_files_are_not_broken():
    command = "    minitransformer " + "generate " * 20
    console = Console(file=io.StringIO(), width=40, force_terminal=True)
    assert fit_lines(f"\ntry:\n{command}", console) == f"\ntry:\n{command}"
    assert fit_lines("word " * 40, Console(file=io.StringIO(), width=40)) == "word " * 40


def test_a_score_says_what_it_means():
    assert describe_score(SCORE) == (
        "To predict 250,623 bytes that it was not trained on, the model needs 1.904 bits per byte "
        "(1.3198 nats per token). Lower is better: a uniform guess needs 8 bits per byte, "
        "and the compressor xz -9 needs 1.791."
    )
    alone = describe_score({**SCORE, "xz_bits_per_byte": None})
    assert alone.endswith("a uniform guess needs 8 bits per byte.")
    unknown = describe_score({**SCORE, "bits_per_byte": None})
    assert unknown.endswith("the model needs 1.3198 nats per token. Lower is better.")
    task = {"exact_match": 1.0, "examples": 1182, "correct": 1182}
    assert describe_score(task) == "1,182 of 1,182 validation examples correct."


def test_a_recipe_says_what_it_learns_from():
    recipe = load_recipe("python")
    assert "the source of Python's standard library" in describe_recipe(recipe)
    assert describe_recipe(recipe, ["mine.txt", "b"]) == "the settings of python, trained on mine.txt, b"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("python", ["max_steps=60", "learning_rate=1e-8", "min_learning_rate=0", "bias=true", "width=96"]),
        ("python-bpe", ["tokenizer=characters", "vocabulary_size=0", "load_best_model_at_end=true"]),
        ("sort", []),
    ],
)
def test_what_is_suggested_is_the_run_again_but_wider(name, changes, material):
    recipe = load_recipe(name, changes)
    *_, (what, arguments) = suggest_commands(recipe, "runs/x", material, ["a text.txt"], ["--device", "cuda"])
    assert what == "train a wider model"
    start = ["train", name, "--data", "a text.txt", "--device", "cuda"]
    assert arguments[: len(start)] == start
    assert set(arguments[len(start) :: 2]) == {"--set"}
    assigned = arguments[len(start) + 1 :: 2]
    assert len(assigned) == len({assignment.partition("=")[0] for assignment in assigned})
    assert load_recipe(name, assigned) == load_recipe(name, [*changes, f"width={2 * recipe.model.width}"])


def test_a_task_is_not_judged_by_a_text(material):
    wanted = [("evaluate it again, or on another text (--data)", ["evaluate", "runs/x"])]
    assert list(suggest_commands(load_recipe("python"), "runs/x", material))[1:2] == wanted
    task = SimpleNamespace(prompt="012", source={"corpus": "sort"}, validation_text=None)
    wanted = [
        ("generate text", ["generate", "runs/x", "--prompt", "012"]),
        ("evaluate it again", ["evaluate", "runs/x"]),
    ]
    assert list(suggest_commands(load_recipe("sort"), "runs/x", task))[:2] == wanted


def test_nothing_is_offered_in_place_of_a_model_that_was_given(material):
    recipe = replace(load_recipe("python"), pretrained=object())
    offered = [arguments[0] for _, arguments in suggest_commands(recipe, "runs/x", material)]
    assert offered == ["generate", "evaluate"]


def test_what_does_better_is_offered(material):
    (name, why), readme = display.BETTER["python"], Path(__file__).parents[2] / "README.md"
    figure = re.search(r"\d\.\d+", why).group()
    assert re.search(rf"{name}\b.*{re.escape(figure)}", readme.read_text(encoding="utf-8"))
    offered = [arguments for _, arguments in suggest_commands(load_recipe("python"), "runs/x", material)]
    assert ["train", "python-bpe"] in offered
    with_data = suggest_commands(load_recipe("python"), "runs/x", material, ["mine.txt"])
    assert not any("python-bpe" in arguments for _, arguments in with_data)
    (other,) = [each for each in offered if each[0] == "generate"]
    assert other == ["generate", "runs/x", "--prompt", "what"]


@pytest.mark.parametrize("width", [80, 120, None])
def test_the_end_of_a_run_fits_the_screen(screen, width, material):
    file = screen(width)
    recipe = load_recipe("python", ["eval_steps=20", "max_steps=60"])
    TerminalDisplay().done(recipe, "runs/a folder", material, SCORE, 2.25, ["a text.txt"])
    lines = file.getvalue().split("\n")
    commands = [line for line in lines if line.startswith(" " * 6)]
    assert [shlex.split(line)[-len(end) :] for line, end in zip(commands, ENDS, strict=True)] == ENDS
    assert lines[1].startswith("Done in 2.2 seconds")
    words = " ".join(line for line in lines if line not in commands).split()
    assert {"(config.json,", "training.png", "8", "better:", "xz"} <= set(words)
    if width:
        assert all(len(line) <= width for line in lines if line not in commands)
    else:
        assert sum("config.json" in line and "corpus.json" in line for line in lines) == 1


ENDS = [
    ["generate", "runs/a folder", "--prompt", "what"],
    ["evaluate", "runs/a folder"],
    [
        *("train", "python", "--data", "a text.txt", "--set", "max_steps=60", "--set", "eval_steps=20"),
        *("--set", "width=256"),
    ],
]


def test_samples_are_broken_to_the_width_and_keep_their_indentation(screen):
    file = screen(20)
    TerminalDisplay().sample("\n    return a_long_name_that_does_not_fit\nx\x07y\n\n")
    lines = file.getvalue().split("\n")
    assert lines[0] == " " * 4 + "    return "
    assert "".join(line[4:] for line in lines[1:3]) == "a_long_name_that_does_not_fit"[:32]
    assert "    x·y" in lines
    assert all(len(line) <= 20 for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_shows_the_speed(screen, width):
    screen(width)
    bar = ProgressBar()
    bar.task = bar.progress.add_task("training", total=100_000, completed=0, state="")
    bar.on_log(None, LINE)
    bar.on_step_end(SimpleNamespace(step=54_321, max_steps=100_000), SimpleNamespace(loss=1.25))
    bar.console.print(bar.progress.get_renderable())
    (shown,) = bar.console.file.getvalue().splitlines()
    assert "54321/100000 loss 1.250, 104,321 tokens/s ·" in shown
    assert shown.rstrip().endswith("left")
    assert "…" not in shown
    assert len(shown) <= width


class Run(ProgressBar):
    """Shows a run of which every step takes ``seconds`` by the clock of the tests."""

    def __init__(self, monkeypatch, seconds):
        super().__init__()
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def on_step_end(self, trainer, result):
        self.now += self.seconds
        super().on_step_end(trainer, result)


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(0.01, []), (6, [2, 4, 6, 8]), (100, [1, 2, 3, 4, 5, 6, 7, 8, 9])],
    ids=["fast", "slow", "slower"],
)
def test_a_log_shows_that_a_run_goes_on(screen, monkeypatch, tmp_path, seconds, steps):
    file = screen(None)
    run = Run(monkeypatch, seconds)
    tiny_trainer(tmp_path / "run", callbacks=[run], max_steps=10, eval_steps=100, logging_steps=1).train()
    told = [line for line in file.getvalue().splitlines() if " of 10: loss " in line]
    assert [int(line.split()[1]) for line in told] == steps
    for step, line in zip(steps, told, strict=True):
        assert line.endswith(f"{format_duration(seconds * (10 - step))} left")
        assert ("tokens/s" in line) == (step > 1)


def test_a_long_run_is_no_long_log(screen, monkeypatch):
    file = screen(None)
    run = Run(monkeypatch, 1)
    trainer = SimpleNamespace(step=0, max_steps=100_000)
    run.on_train_begin(trainer)
    while trainer.step < 10_000:
        trainer.step += 1
        run.on_step_end(trainer, SimpleNamespace(loss=1.0))
    lines = file.getvalue().splitlines()
    assert len(lines) == 10_000 // progress.LONGEST_SILENCE
    assert lines[0].startswith("step 60 of 100000: loss 1.000, ")
