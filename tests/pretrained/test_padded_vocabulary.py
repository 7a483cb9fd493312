"""A vocabulary padded beyond the tokenizer's: it loads, and a row that is no token is never taken."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from minitransformer.command.app import app
from minitransformer.data import Sequences, character_tokenizer, encode, save_tokenizer
from minitransformer.errors import InputError
from minitransformer.evaluation.scores import evaluate_task
from minitransformer.generation.sampling import generate
from minitransformer.models import GPT, GPTConfig
from minitransformer.pretrained.model_folder import load_model, save_model

TEXT = "hear me speak\n"
TOKENIZER = character_tokenizer(TEXT)
TOKENS, ROWS = TOKENIZER.get_vocab_size(), 16


@pytest.fixture
def padded(tmp_path):
    """A model with more rows than its tokenizer has tokens, and the largest logits where there is none."""
    config = GPTConfig(vocabulary_size=ROWS, context_length=16, layers=1, heads=1, width=8)
    model = GPT(config).build(seed=3)
    values = model.parameters()
    values["embedding.table"].value[TOKENS:] *= 100
    values["norm.bias"].value[...] = values["embedding.table"].value[TOKENS] / 2
    save_model(model, tmp_path)
    save_tokenizer(TOKENIZER, tmp_path, 16)
    return tmp_path


def test_a_row_that_is_no_token_is_never_drawn(padded):
    model, ids = load_model(padded), encode(TOKENIZER, "hear")
    assert max(generate(model, ids, 200, temperature=2.0)) >= TOKENS
    assert set(generate(model, ids, 20, temperature=0)) == {TOKENS}
    for temperature, more in (
        (2.0, {}),
        (0, {}),
        (5.0, {"top_k": 15}),
        (5.0, {"top_p": 0.99, "use_cache": False}),
    ):
        drawn = generate(model, ids, 200, temperature=temperature, vocabulary_size=TOKENS, **more)
        assert max(drawn) < TOKENS


def test_a_vocabulary_of_no_token_is_refused(padded):
    with pytest.raises(InputError, match="vocabulary_size is 0; expected 1 to 16"):
        generate(load_model(padded), [1], 3, vocabulary_size=0)


def test_the_commands_take_a_vocabulary_that_is_padded(padded):
    (padded / "text.txt").write_text(TEXT * 20)
    run = CliRunner().invoke
    done = run(
        app, ["generate", str(padded), "--prompt", "hear", "--max-new-tokens", "50", "--temperature", "2"]
    )
    assert done.exit_code == 0
    assert done.output.startswith("hear")
    assert len(done.output) == len("hear") + 50 + len("\n")
    scored = run(app, ["evaluate", str(padded), "--data", str(padded / "text.txt")])
    assert json.loads(scored.stdout)["tokens"] == len(TEXT) * 20 - 1
    assert (
        run(app, ["attention", str(padded), "--text", "hear", "--output", str(padded / "a.png")]).exit_code
        == 0
    )


def test_a_vocabulary_that_is_too_small_is_refused(padded):
    save_tokenizer(character_tokenizer("".join(map(chr, range(32, 49)))), padded, 16)
    done = CliRunner().invoke(app, ["generate", str(padded)])
    assert isinstance(done.exception, InputError)
    message = "has 17 tokens, but its model's vocabulary_size is 16; the folder needs the tokenizer"
    assert message in str(done.exception)


def test_answers_are_chosen_among_tokens():
    config = GPTConfig(vocabulary_size=8, context_length=4, layers=1, heads=1, width=8)
    model = GPT(config).build(seed=0)
    values = model.parameters()
    values["embedding.table"].value[...] = 0
    values["embedding.table"].value[[1, 5], 0] = 1, 2
    values["norm.gain"].value[...], values["norm.bias"].value[0] = (
        0,
        1,
    )  # the logits: that column of the table
    examples = Sequences([np.array([2, 0]), np.array([2, 0])], [np.array([-100, 1]), np.array([-100, 2])])
    assert evaluate_task(model, examples)["correct"] == 0
    assert evaluate_task(model, examples, vocabulary_size=5)["correct"] == 1
