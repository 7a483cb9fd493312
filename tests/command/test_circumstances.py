"""The command line wherever it is run: no home, no such user, odd names, closed streams, many at once."""

import json
import os
import subprocess
import sys
import typing

import pytest
import typer
from common.command_line import (
    TEXT,
    TINY,
    answer,
    assert_one_error,
    command,
    environment,
    minitransformer,
)

from minitransformer.command.app import app
from minitransformer.command.options import Data

ODD = os.fsdecode(b"caf\xe9")


# --- home

NOBODY = """
import pwd
def getpwuid(_):
    raise KeyError("no such user")
pwd.getpwuid = getpwuid
from minitransformer.__main__ import main
main()
"""
CACHES = "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "MINITRANSFORMER_CACHE"


def run_by_nobody(*arguments, cwd):
    """Run a command as a container's ``-u 12345`` does: without HOME, and without an entry for the user."""
    return subprocess.run(
        [sys.executable, "-c", NOBODY, *map(str, arguments)],
        cwd=cwd,
        env=environment(without=CACHES),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_without_a_home(*arguments, cwd):
    """Run a command with a home that is no folder: nobody can write to it, whoever they are."""
    settings = environment(without=CACHES, HOME=str(cwd / "text.txt"))
    return minitransformer(*arguments, cwd=cwd, env=settings)


@pytest.mark.parametrize(
    ("started", "reason", "drawing"),
    [
        (run_by_nobody, "there is no home folder", 1),  # which matplotlib would look for, too
        (run_without_a_home, "text.txt/.cache/minitransformer cannot be written to", 0),
    ],
)
def test_all_goes_on_without_a_home(folder, tmp_path, started, reason, drawing):
    def run(*arguments, warnings):
        done = started(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        assert len(lines) == warnings
        for line in lines:
            assert line.startswith("minitransformer: warning: ")
            assert reason in line
            assert "MINITRANSFORMER_CACHE" in line
        return done.stdout

    output = tmp_path / "model"
    trained = run("train", "shakespeare", "--data", "text.txt", "--output-dir", output, *TINY, warnings=1)
    assert "bits per byte" in trained
    assert (output / "training.png").exists()
    assert "until this process ends" in run("info", warnings=1)
    run("generate", output, "--max-new-tokens", 3, warnings=0)
    run("attention", output, "--text", "the", "--output", tmp_path / "a.png", warnings=drawing)


# --- drawing

BROKEN = "raise ValueError('broken\\nas a notebook leaves it')"


def test_a_run_whose_picture_fails_ends_well(folder, tmp_path):
    (tmp_path / "matplotlib.py").write_text(BROKEN)
    settings = environment(PYTHONPATH=str(tmp_path))
    output = tmp_path / "model"
    done = minitransformer(
        *("train", "shakespeare", "--data", "text.txt", "--output-dir", output, *TINY),
        cwd=folder,
        env=settings,
    )
    assert done.returncode == 0
    assert done.stderr == (
        "minitransformer: warning: training.png was not drawn: no picture can be drawn: matplotlib cannot be "
        "loaded (broken as a notebook leaves it)\n"
    )
    assert "bits per byte" in done.stdout
    drawn = minitransformer("positions", output, "--output", tmp_path / "p.png", cwd=folder, env=settings)
    assert_one_error(drawn, "no picture can be drawn: matplotlib cannot be loaded (broken as")
    assert not (tmp_path / "p.png").exists()


def test_a_backend_that_is_not_there(folder, tmp_path):
    """A notebook's ``!minitransformer train`` inherits such a name."""
    settings = environment(MPLBACKEND="no such backend")
    done = minitransformer(
        *("train", "shakespeare", "--data", "text.txt", "--output-dir", tmp_path / "model", *TINY),
        cwd=folder,
        env=settings,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "model" / "training.png").exists()


# --- names and texts that are not UTF-8


NEEDED = {
    "generate": ["model"],
    "evaluate": ["model"],
    "attention": ["model", "--text", "the"],
    "positions": ["model"],
}
FLAGS = {"settings": "--set"}


def text_parameters():
    """Yield the arguments up to a text, for every option and argument of a command that takes one."""
    for each in app.registered_commands:
        name = each.callback.__name__
        for parameter, hint in typing.get_type_hints(each.callback, include_extras=True).items():
            base, *details = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
            if base not in (str, str | None, list[str] | None) or hint == Data:
                continue
            if isinstance(details[0], typer.models.ArgumentInfo):
                yield (name,)
            else:
                yield name, *NEEDED.get(name, []), FLAGS.get(parameter, f"--{parameter}")


@pytest.mark.parametrize("arguments", [*text_parameters()], ids=" ".join)
def test_a_text_that_is_not_utf_8_is_told_with_its_place(folder, arguments):
    done = answer(*arguments, f"seed={ODD}", cwd=folder)
    assert_one_error(done, "is not UTF-8 text: byte 0xe9 at offset 8 can't be decoded")


def test_there_are_such_parameters():
    assert {(arguments[0], arguments[-1]) for arguments in text_parameters()} >= {
        ("generate", "--prompt"),
        ("attention", "--text"),
        ("train", "--set"),
        ("train", "train"),
        ("recipes", "--set"),
    }


def test_texts_are_utf_8_whatever_the_locale_is(folder):
    settings = environment(
        without=("LANG", "LC_CTYPE"),
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONIOENCODING="ascii",
    )
    for arguments in (("generate", "model", "--prompt", "né"), ("attention", "model", "--text", "né")):
        done = minitransformer(*arguments, cwd=folder, env=settings, encoding="utf-8")
        assert_one_error(done, "characters that the model never saw: 'é' (U+00E9)")
    done = minitransformer("info", cwd=folder, env=settings, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")


def test_names_need_not_be_utf_8(folder):
    odd = folder / ODD
    odd.mkdir()
    (odd / f"{ODD}.txt").write_text(TEXT)
    (odd / f"{ODD}.txt").rename(odd / f"{ODD}-2.txt")

    def run(*arguments):
        done = minitransformer(*arguments, cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    run("train", "shakespeare", "--data", ODD, "--output-dir", f"{ODD}/model", *TINY)
    run("train", "--resume", "--output-dir", f"{ODD}/model", "--set", "max_steps=3")
    assert json.loads(run("evaluate", f"{ODD}/model"))["text"] == "validation"
    run("evaluate", f"{ODD}/model", "--data", f"{ODD}/*.txt")
    run("generate", f"{ODD}/model", "--max-new-tokens", 3)
    run("attention", f"{ODD}/model", "--text", "the", "--output", f"{ODD}/a.svg")
    run("positions", f"{ODD}/model", "--output", f"{ODD}/p.pdf")
    record = json.loads((odd / "model" / "corpus.json").read_text())
    assert record["paths"] == [str(odd)]
    for arguments in (
        ("evaluate", f"{ODD}/nothing"),
        ("evaluate", "model", "--data", f"{ODD}/nothing"),
        ("train", "shakespeare", "--data", f"{ODD}/nothing"),
    ):
        assert_one_error(minitransformer(*arguments, cwd=folder), "caf?/nothing")


# --- streams and places

COMMANDS = "recipes", "info", "generate model --max-new-tokens 3", "evaluate model"
CASES = [
    *((COMMANDS[0], closed) for closed in ("<&-", ">&-", "2>&-")),
    *((each, "<&- >&- 2>&-") for each in COMMANDS),
]


@pytest.mark.parametrize(("arguments", "closed"), CASES)
def test_streams_that_are_closed(folder, arguments, closed):
    script = f'"{sys.executable}" -m minitransformer {arguments} {closed}'
    done = subprocess.run(
        ["sh", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (closed in ("<&-", "2>&-"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("arguments", COMMANDS)
def test_an_output_that_is_full(folder, arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(*arguments.split()),
            cwd=folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert_one_error(done, "No space left on device")


def test_a_folder_that_is_gone(tmp_path):
    script = f'mkdir gone && cd gone && rmdir ../gone && exec "{sys.executable}" -m minitransformer "$@"'

    def run(*arguments):
        return subprocess.run(
            ["sh", "-c", script, "sh", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert (run("info").returncode, run("recipes").returncode) == (0, 0)
    assert_one_error(run("train", "sort"), "No such file or directory")
