"""What transformers makes of the folder of a run, for each kind of tokenizer: our ids and our text."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitransformer.data import encode, load_tokenizer, save_tokenizer
from minitransformer.data.tokenizer import KINDS, start_id
from minitransformer.generation.sampling import generate
from minitransformer.pretrained.model_folder import load_model
from minitransformer.recipes import load_recipe
from minitransformer.recipes.run import train_recipe

LENGTH, NEW = 32, 10
LEARNED = (
    """Before we proceed any further, hear me speak.
You're all resolved rather to die than to famish? I'll we've DON'T
Naïve 😀 \t  日本語 2024, running jumping unwanted (x+1)==y;\r\n
    def __init__(self):
        self.words = []


"""
    * 40
)
SIZES = {"characters": 0, "bpe": 300, "wordpiece": 120}
FOLDERS = ["", "checkpoint-4"]
TEXTS = [
    "",
    " ",
    "hear me  speak   .\n\n\n  You're",
    " \t all\r\nresolved , n't ' .",
    "日本語 😀 Naïve",
    "    def __init__(self):\n        self",
]


def settings_of(kind):
    tokenizer = [f"tokenizer={kind}"]
    if SIZES[kind]:
        tokenizer.append(f"vocabulary_size={SIZES[kind]}")
    return [
        *tokenizer,
        *(f"context_length={LENGTH}", "width=16", "heads=2", "layers=2"),
        *("max_steps=4", "eval_steps=2", "save_steps=4", "learning_rate=1e-2", "warmup_steps=0"),
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run for each kind of tokenizer."""
    root = tmp_path_factory.mktemp("runs")
    (root / "text.txt").write_bytes(LEARNED.encode())
    for kind in KINDS:
        recipe = load_recipe("shakespeare", settings_of(kind))
        train_recipe(recipe, root / kind, [root / "text.txt"])
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(params=KINDS)
def folder(request, runs):
    return runs[request.param]


@pytest.mark.parametrize("part", FOLDERS)
def test_auto_tokenizer_gives_our_ids(folder, transformers, part):
    folder = folder / part
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == ours.get_vocab_size()
    assert theirs.model_max_length == LENGTH
    for text in TEXTS:
        ids = encode(ours, text).tolist()
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False)


@pytest.fixture(scope="module")
def theirs_of(runs, transformers):
    return {kind: transformers.AutoTokenizer.from_pretrained(folder) for kind, folder in runs.items()}


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text() | st.text("aeh .\n\t'<|>[]Ué日\u0301\u200b"))
def test_auto_tokenizer_gives_our_ids_of_any_text(runs, theirs_of, kind, text):
    ours = load_tokenizer(runs[kind])
    if kind == "characters":
        text = "".join(character for character in text if character in ours.get_vocab())
    ids = encode(ours, text).tolist()
    assert theirs_of[kind](text)["input_ids"] == ids
    assert theirs_of[kind].decode(ids) == ours.decode(ids, skip_special_tokens=False)


def test_special_tokens_are_named_where_they_exist(theirs_of):
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
    named = {kind: [getattr(theirs, name) for name in names] for kind, theirs in theirs_of.items()}
    end = "<|endoftext|>"
    assert named == {
        "characters": [None] * 7,
        "bpe": [end, end, *[None] * 5],
        "wordpiece": [None, None, "[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"],
    }


@pytest.mark.parametrize("part", FOLDERS)
def test_auto_model_computes_the_same(folder, torch, transformers, part):
    folder = folder / part
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    ids = encode(load_tokenizer(folder), LEARNED)[None, :LENGTH]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    logits, _ = load_model(folder, dtype="float64")({"ids": ids})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prompt", ["hear me", "    def __init__(", ""])
def test_a_pipeline_writes_our_greedy_text(folder, transformers, prompt):
    tokenizer = load_tokenizer(folder)
    ids = encode(tokenizer, prompt).tolist() or [start_id(tokenizer)]
    if tokenizer.id_to_token(ids[0]) == "[PAD]":
        return  # see test_what_is_written_beside_the_tokenizer
    expected = [*ids, *generate(load_model(folder), ids, NEW, temperature=0)]
    pipeline = transformers.pipeline("text-generation", model=str(folder))
    settings = {"max_new_tokens": NEW, "do_sample": False}
    (written,) = pipeline(prompt, return_tensors=True, **settings)
    assert written["generated_token_ids"] == expected
    text = tokenizer.decode(expected, skip_special_tokens=False)
    assert pipeline.tokenizer.decode(written["generated_token_ids"]) == text
    if folder.name != "wordpiece":  # whose new words transformers puts behind the prompt without a space
        (written,) = pipeline(prompt, skip_special_tokens=False, **settings)
        assert written["generated_text"] == text


def test_a_pipeline_ends_where_the_context_does(folder, transformers):
    """Left alone it asks for 256 tokens, more than this model has positions for."""
    pipeline = transformers.pipeline("text-generation", model=str(folder))
    (written,) = pipeline("hear me", return_tensors=True)
    assert len(written["generated_token_ids"]) == LENGTH + 1


def test_a_task_is_answered_as_by_us(tmp_path, torch, transformers):
    """The length of an answer, and that nothing is drawn by chance, stand in the folder."""
    settings = ["max_steps=2", "eval_steps=2", "width=16", "heads=2", "layers=1"]
    _, material = train_recipe(load_recipe("sort", settings), tmp_path / "run")
    tokenizer, model = load_tokenizer(tmp_path / "run"), load_model(tmp_path / "run")
    ids = encode(tokenizer, "201102").tolist()
    expected = [*ids, *generate(model, ids, material.answer_length, temperature=0)]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert theirs.generate(torch.tensor([ids])).tolist() == [expected]
    pipeline = transformers.pipeline("text-generation", model=str(tmp_path / "run"))
    answered = pipeline("201102", do_sample=False)  # before version 5 it draws unless it is told
    assert answered == [{"generated_text": tokenizer.decode(expected)}]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_beside_the_tokenizer(runs, tmp_path, kind):
    """Read without transformers, which may not be installed."""
    save_tokenizer(load_tokenizer(runs[kind]), tmp_path, 7)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (written["model_max_length"], written["clean_up_tokenization_spaces"]) == (7, False)
    assert ("eos_token" in written, "unk_token" in written) == (kind == "bpe", kind == "wordpiece")
    for part in FOLDERS:
        again = json.loads((runs[kind] / part / "tokenizer_config.json").read_text())
        assert again == written | {"model_max_length": LENGTH}
        assert json.loads((runs[kind] / part / "generation_config.json").read_text()) == {
            # [PAD], after which WordPiece starts here, is nothing to see for transformers
            "bos_token_id": None if kind == "wordpiece" else start_id(load_tokenizer(runs[kind])),
            "eos_token_id": None,
            "max_length": LENGTH + 1,
        }
