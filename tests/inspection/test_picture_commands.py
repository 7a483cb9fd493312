"""The commands that draw: ``attention`` and ``positions``."""

import sys

import numpy as np
import pytest
from common.pictures import CHARACTERS, gpt, pixels_of

from minitransformer.command.app import main
from minitransformer.data import character_tokenizer, encode
from minitransformer.functional import full_mask
from minitransformer.inspection import attention_maps as module
from minitransformer.inspection.attention_maps import compute_attention_maps, plot_attention
from minitransformer.layers import SelfAttention
from minitransformer.pretrained.model_folder import load_model, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model and its tokenizer in ``model``."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "model").mkdir()
    save_model(gpt("float32"), root / "model")
    character_tokenizer(CHARACTERS).save(str(root / "model" / "tokenizer.json"))
    return root


@pytest.fixture
def minitransformer(folder, monkeypatch, capsys):
    """Run a command in ``folder``; return its exit status, output and errors."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["minitransformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_the_commands(folder, minitransformer):
    assert minitransformer("attention", "model", "--text", "bad cab\n") == (
        0,
        "attention.png shows the attention weights of 8 tokens\n",
        "",
    )
    chosen = "--layer", 1, "--head", 2, "--output", "one.PNG"
    status, output, _ = minitransformer("attention", "model", "--text", "bad cab\n", *chosen)
    assert (status, output) == (0, "one.PNG shows the attention weights of 8 tokens\n")
    grid, one = (pixels_of(folder / name).shape for name in ("attention.png", "one.PNG"))
    assert grid[0] > 1.7 * one[0]
    assert grid[1] > 2.3 * one[1]
    ids = encode(character_tokenizer(CHARACTERS), "bad cab\n")
    maps, _ = compute_attention_maps(load_model(folder / "model"), ids)
    plot_attention(maps, [*"bad␣cab⏎"], folder / "ours.png", layer=1, head=2)
    np.testing.assert_array_equal(pixels_of(folder / "one.PNG"), pixels_of(folder / "ours.png"))

    expected = "positions.png shows the learned encoding of 16 positions\n"
    assert minitransformer("positions", "model") == (0, expected, "")
    assert pixels_of(folder / "positions.png").shape[1] > 1000


def test_a_model_that_sees_all_tokens(folder, minitransformer, monkeypatch):
    masked = SelfAttention.__call__

    def unmasked(self, x, mask, *others, **settings):
        return masked(self, x, full_mask(x.shape[1]), *others, **settings)

    monkeypatch.setattr(SelfAttention, "__call__", unmasked)
    chosen = "--layer", 0, "--head", 0, "--output", "all.png"
    status, _, errors = minitransformer("attention", "model", "--text", "bad", *chosen)
    assert (status, errors) == (0, "")
    maps, visible = compute_attention_maps(
        load_model(folder / "model"), encode(character_tokenizer(CHARACTERS), "bad")
    )
    assert visible.all()
    plot_attention(maps, [*"bad"], folder / "ours.png", layer=0, head=0, visible=visible)
    np.testing.assert_array_equal(pixels_of(folder / "all.png"), pixels_of(folder / "ours.png"))


def test_the_command_says_what_it_leaves_out(minitransformer, monkeypatch):
    monkeypatch.setattr(module, "MOST_ABREAST", 2)
    assert minitransformer("attention", "model", "--text", "bad", "--output", "few.png") == (
        0,
        "few.png shows the attention weights of 3 tokens\n"
        "drawn are heads 0, 1 of 0 to 2 (choose by --head)\n",
        "",
    )


def mistakes():
    attention = "attention", "model", "--text", "abc"
    yield "layer", (*attention, "--layer", 2), "there is no layer 2; the model has layers 0 to 1"
    yield "negative layer", (*attention, "--layer", -1), "there is no layer -1; the model has layers 0 to 1"
    yield "head", (*attention, "--head", 3), "there is no head 3; the model has heads 0 to 2"
    yield "empty", ("attention", "model", "--text", ""), "the text is empty; expected at least one token"
    yield "long", ("attention", "model", "--text", 17 * "a"), "17 tokens; the model sees at most 16"
    yield "characters", ("attention", "model", "--text", "xa"), "never saw: 'x' (U+0078)"
    for command in (attention, ("positions", "model")):
        no_ending = "cannot be written to picture; expected a name that ends in .png, .pdf"
        yield f"{command[0]}, no ending", (*command, "--output", "picture"), no_ending
        yield f"{command[0]}, ending", (*command, "--output", "a.bmp"), "cannot be written to a.bmp; expected"
        gone = "nowhere/a.png cannot be written: No such file or directory"
        yield f"{command[0]}, no folder", (*command, "--output", "nowhere/a.png"), gone
        yield f"{command[0]}, a folder", (*command, "--output", "folder.png"), "folder.png cannot be written"
    yield "no model", ("attention", "nowhere", "--text", "a"), "there is no folder nowhere"
    yield "no model for positions", ("positions", "nowhere"), "there is no folder nowhere"


@pytest.mark.parametrize(
    ("arguments", "message"), [pytest.param(*case, id=name) for name, *case in mistakes()]
)
def test_a_mistake_is_answered_by_one_line(folder, minitransformer, arguments, message):
    (folder / "folder.png").mkdir(exist_ok=True)
    before = sorted(folder.iterdir())
    status, output, errors = minitransformer(*arguments)
    assert (status, output) == (1, "")
    assert errors.startswith("minitransformer: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert sorted(folder.iterdir()) == before
