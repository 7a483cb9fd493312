"""Tokenizers that others made: a text has the same tokens whatever their file says, whole or in pieces."""

import json

import numpy as np
import pytest
from common.texts import LEARNED, SIZES, TEXTS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from minitransformer.data import encode, load_tokenizer, save_tokenizer, train_tokenizer
from minitransformer.data import tokenizer as tokenizer_module
from minitransformer.data.text import open_text
from minitransformer.data.token_file import write_tokens
from minitransformer.data.tokenizer import (
    KINDS,
    encode_bytes,
    encode_pieces,
    id_count,
    is_character_level,
    is_reversible,
    strip_call_settings,
    token_byte_count,
)
from minitransformer.errors import InputError

ALPHABET = pre_tokenizers.ByteLevel.alphabet()
GPT4 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MARKS = st.sampled_from(["<mask>", "> ", "    ", " \n", "!\n", "a b", "x ", "▁"])


def byte_pairs(splitting, normalizer=None, added=()):
    """Return byte-level pairs that were learned with these steps before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = splitting, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=ALPHABET, show_progress=False)
    tokenizer.train_from_iterator([LEARNED + "!\n!\n\n x!\n"] * 3, trainer)
    tokenizer.add_tokens(list(added))
    return tokenizer


def sentence_pieces(prepend_scheme):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator([LEARNED] * 3, trainer)
    return tokenizer


def llama_like():
    """Byte pairs over the whole text, spaces and all, with a byte for what is unknown."""
    letters = [*sorted(set(LEARNED.replace(" ", "▁")) - {"▁"}), "▁"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for token in [*letters, "▁h", "e▁", "▁▁", "e▁h", "\n▁", "he", "▁he"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [("▁", "h"), ("e", "▁"), ("▁", "▁"), ("h", "e"), ("▁", "he"), ("\n", "▁"), ("e", "▁h")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def words():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "hear": 1, "me": 2, ".": 3}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def keeping(**settings):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | settings)


FOREIGN = {
    "gpt-2": lambda: byte_pairs(keeping()),
    "gpt-neox": lambda: byte_pairs(keeping(), normalizers.NFC(), [AddedToken("    ", normalized=False)]),
    "a space at the beginning": lambda: byte_pairs(keeping(add_prefix_space=True)),
    "no words": lambda: byte_pairs(keeping(use_regex=False)),
    "gpt-4": lambda: byte_pairs(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4), "isolated"), keeping(use_regex=False)])
    ),
    "stripped": lambda: byte_pairs(keeping(), normalizers.Strip()),
    "cleaned": lambda: byte_pairs(keeping(), normalizers.BertNormalizer()),
    "fewer spaces": lambda: byte_pairs(keeping(), normalizers.Replace(Regex(r"\S {2,}"), " ")),
    "takes spaces after it": lambda: byte_pairs(keeping(), added=[AddedToken("<mask>", rstrip=True)]),
    "takes spaces before it": lambda: byte_pairs(keeping(), added=[AddedToken("<mask>", lstrip=True)]),
    "tokens across words": lambda: byte_pairs(keeping(), added=["> ", "x ", "a b", "!\n"]),
    "sentencepiece": lambda: sentence_pieces("always"),
    "sentencepiece, first": lambda: sentence_pieces("first"),
    "llama": llama_like,
    "words": words,
}


@pytest.fixture(scope="module")
def foreign():
    return {name: make() for name, make in FOREIGN.items()}


@pytest.mark.parametrize("name", FOREIGN)
@given(text=st.lists(TEXTS | MARKS, max_size=6).map("".join), data=st.data())
def test_a_foreign_tokenizer_gives_a_text_in_pieces_the_same_tokens(foreign, name, text, data):
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[start:stop] for start, stop in zip([0, *places], [*places, len(text)], strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "CHUNK", data.draw(st.integers(1, 8)))
        patch.setattr(tokenizer_module, "CHUNKS", 2)
        parts = list(encode_pieces(foreign[name], pieces))
    expected = foreign[name].encode(text, add_special_tokens=False).ids
    assert np.concatenate([[], *parts]).tolist() == expected


def test_those_that_split_at_words_are_given_little_at_a_time(foreign):
    text = LEARNED * 400
    cut = {name for name, tokenizer in foreign.items() if len(list(encode_pieces(tokenizer, [text]))) > 1}
    assert cut == {"gpt-2", "gpt-neox", "takes spaces before it", "words"}


# --- what a call leaves behind


def truncated(tokenizer):
    tokenizer.enable_truncation(5)


def padded(tokenizer):
    tokenizer.enable_padding(length=2000)


def framed(tokenizer):
    last = tokenizer.id_to_token(id_count(tokenizer) - 1)
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{last} $A {last}", special_tokens=[(last, id_count(tokenizer) - 1)]
    )


def blind_to_special_tokens(tokenizer):
    tokenizer.encode_special_tokens = True


def undecided(tokenizer):
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = 0.5


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    path = tmp_path_factory.mktemp("learned") / "text"
    path.write_bytes(LEARNED.encode())
    return open_text([path])


@pytest.fixture
def tokenizer(kind, learned):
    return train_tokenizer(kind, SIZES[kind], learned)


STATES = [truncated, padded, framed, undecided]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leave", [*STATES, blind_to_special_tokens], ids=lambda leave: leave.__name__)
def test_what_a_call_left_in_a_tokenizer_changes_no_text(tokenizer, kind, leave):
    text = LEARNED if kind == "characters" else f"{LEARNED}<|endoftext|>[SEP]{LEARNED}"
    expected = encode(tokenizer, text).tolist()
    expected_bytes = encode_bytes(tokenizer, text.encode()).tolist() if kind == "bpe" else None
    leave(tokenizer)
    assert encode(tokenizer, text).tolist() == expected
    assert kind != "bpe" or encode_bytes(tokenizer, text.encode()).tolist() == expected_bytes
    assert is_character_level(tokenizer) == (kind == "characters")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leave", STATES, ids=lambda leave: leave.__name__)
def test_what_a_call_left_in_the_file_is_not_read_and_not_written(tokenizer, kind, leave, tmp_path):
    expected = tokenizer.to_str()
    leave(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.to_str() == expected
    assert loaded.encode(LEARNED).ids == encode(loaded, LEARNED).tolist()
    save_tokenizer(tokenizer, tmp_path, 8)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(expected)


def test_a_tokenizer_that_was_told_nothing_is_not_copied(foreign):
    for tokenizer in foreign.values():
        assert strip_call_settings(tokenizer) is tokenizer


@pytest.mark.parametrize("kind", ["bpe"])
def test_dropout_is_noticed_by_this_test(tokenizer, kind):
    undecided(tokenizer)
    assert len({tuple(tokenizer.encode(LEARNED).ids) for _ in range(5)}) > 1


def test_transformers_leaves_its_last_call_in_the_file(tmp_path, transformers, learned):
    """The truncation and padding of a call are saved with the tokenizer, by transformers itself."""
    ours = train_tokenizer("bpe", 360, learned)
    (tmp_path / "ours").mkdir()
    save_tokenizer(ours, tmp_path / "ours", 64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours", pad_token="<|endoftext|>")
    theirs([LEARNED, "a"], truncation=True, padding=True, max_length=5)
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert written["truncation"] is not None and written["padding"] is not None
    np.testing.assert_array_equal(encode(load_tokenizer(tmp_path), LEARNED), encode(ours, LEARNED))


# --- what tokens there are


def test_ids_beyond_the_number_of_tokens_are_counted(learned, tmp_path):
    written = json.loads(train_tokenizer("characters", 0, learned).to_str())
    token = {"special": True, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False}
    written["model"]["vocab"] |= {"<s>": 300}
    written["added_tokens"] = [{"id": 300, "normalized": False, **token}]
    tokenizer = Tokenizer.from_str(json.dumps(written))
    assert (tokenizer.get_vocab_size(), id_count(tokenizer)) == (len(set(LEARNED)) + 1, 301)
    (tmp_path / "text").write_text("hear<s>me")
    write_tokens(tmp_path / "tokens.npy", open_text([tmp_path / "text"]), tokenizer)
    assert np.load(tmp_path / "tokens.npy").tolist() == encode(tokenizer, "hear<s>me").tolist()
    assert encode(tokenizer, "hear<s>me")[4] == 300


def test_characters_beside_added_tokens_are_known_or_named():
    """``transformers`` adds a special token to a tokenizer of characters that has none."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.add_special_tokens(["<end>"])
    assert encode(tokenizer, "ab<end>a").tolist() == [0, 1, 2, 0]
    with pytest.raises(InputError, match=r"never saw: 'd' .*, 'e' .*, 'n' .*; it knows 2 characters"):
        encode(tokenizer, "ab<end>end")


def test_bits_per_byte_are_told_only_where_the_text_comes_back(foreign, learned):
    reversible = {name for name, tokenizer in foreign.items() if is_reversible(tokenizer)}
    assert reversible == {
        *("gpt-2", "a space at the beginning", "no words", "gpt-4", "tokens across words"),
        *("takes spaces after it", "takes spaces before it"),
    }
    ours = {kind: is_reversible(train_tokenizer(kind, SIZES[kind], learned)) for kind in KINDS}
    assert ours == {"characters": True, "bpe": True, "wordpiece": False}
    lacking = Tokenizer(models.BPE({"a": 0}, []))
    lacking.pre_tokenizer, lacking.decoder = keeping(), decoders.ByteLevel()
    assert not is_reversible(lacking)


def test_an_added_token_that_is_text_has_bytes(foreign):
    tokenizer = foreign["gpt-neox"]
    ids = encode(tokenizer, "a    é")
    assert [token_byte_count(tokenizer, int(index)) for index in ids] == [1, 4, 1, 1]
