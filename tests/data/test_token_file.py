"""Token files: the tokens of a text, made once, found again, and never half written."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from minitransformer.data import (
    Text,
    character_tokenizer,
    encode,
    open_tokens,
    token_file,
    train_tokenizer,
)
from minitransformer.data import text as text_module
from minitransformer.data.text import open_text
from minitransformer.data.token_file import write_tokens
from minitransformer.data.tokenizer import decode_bytes, encode_pieces, separator_id
from minitransformer.errors import InputError
from minitransformer.system.cache import make_cache_folder

CONTENT = "naïve text 😀\r\nin some lines, again and again\n" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test; returned is what it holds."""
    monkeypatch.setenv("MINITRANSFORMER_CACHE", str(tmp_path / "cache"))
    return lambda: sorted((tmp_path / "cache").rglob("*.*"))


@pytest.fixture
def written(tmp_path):
    def write(*contents):
        for number, content in enumerate(contents):
            (tmp_path / f"text{number}").write_bytes(content.encode())
        return open_text([tmp_path / f"text{number}" for number in range(len(contents))])

    return write


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    path = tmp_path_factory.mktemp("learned") / "text"
    path.write_bytes(CONTENT.encode())
    text = open_text([path])
    sizes = {"characters": 0, "bpe": 300, "wordpiece": 60}
    return {kind: train_tokenizer(kind, size, text) for kind, size in sizes.items()}


@pytest.mark.parametrize("kind", ["characters", "bpe", "wordpiece"])
def test_a_token_file_holds_what_encode_returns(written, tokenizers, monkeypatch, cache, kind):
    monkeypatch.setattr(text_module, "PIECE", 10)
    tokens = token_file(written(CONTENT), tokenizers[kind])
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable
    np.testing.assert_array_equal(tokens, encode(tokenizers[kind], CONTENT))
    (path,) = cache()
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), tokens)


@pytest.mark.parametrize("kind", ["characters", "bpe", "wordpiece"])
def test_a_separator_stands_between_documents_if_the_tokenizer_has_one(written, tokenizers, kind):
    tokenizer = tokenizers[kind]
    documents = ["some text", "again\n", "in lines"]
    parts = [encode(tokenizer, document).tolist() for document in documents]
    between = [] if separator_id(tokenizer) is None else [separator_id(tokenizer)]
    assert between == ([0] if kind == "bpe" else [])
    expected = [*parts[0], *between, *parts[1], *between, *parts[2]]
    assert token_file(written(*documents), tokenizer).tolist() == expected


def test_a_token_file_is_made_once(written, tokenizers, cache):
    first = token_file(written(CONTENT), tokenizers["bpe"])
    (path,) = cache()
    before = path.stat()
    again = token_file(written(CONTENT), tokenizers["bpe"])
    np.testing.assert_array_equal(again, first)
    assert cache() == [path]
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_the_same_content_elsewhere_has_the_same_token_file(tmp_path, written, tokenizers, cache):
    token_file(written(CONTENT), tokenizers["bpe"])
    (tmp_path / "copy").write_bytes(b"??" + CONTENT.encode())
    token_file(Text([(tmp_path / "copy", 2, 2 + len(CONTENT.encode()))]), tokenizers["bpe"])
    assert len(cache()) == 1


def test_another_text_or_tokenizer_has_another_token_file(written, tokenizers, cache):
    bpe, larger = tokenizers["bpe"], character_tokenizer(CONTENT + "?")
    cases = [
        (CONTENT, bpe),
        (CONTENT[:-1], bpe),
        (CONTENT[:-2] + "s\n", bpe),
        (CONTENT, tokenizers["characters"]),
        (CONTENT, larger),
    ]
    for number, (content, tokenizer) in enumerate(cases):
        np.testing.assert_array_equal(token_file(written(content), tokenizer), encode(tokenizer, content))
        assert len(cache()) == number + 1


@pytest.mark.parametrize(("kind", "files"), [("bpe", 2), ("characters", 1)])
def test_where_documents_end_matters_if_a_separator_stands_there(written, tokenizers, cache, kind, files):
    for documents in (["text", " lines"], ["text li", "nes"]):
        token_file(written(*documents), tokenizers[kind])
    assert len(cache()) == files


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_tokens_take_as_few_bytes_as_their_number_allows(tmp_path, written, vocabulary_size, dtype):
    words = {chr(0x10000 + index): index for index in range(vocabulary_size)}
    tokenizer = Tokenizer(models.BPE(words, []))
    last = chr(0x10000 + vocabulary_size - 1)
    text = written(last + chr(0x10000) + last)
    write_tokens(tmp_path / "tokens.npy", text, tokenizer)
    tokens = open_tokens(tmp_path / "tokens.npy")
    assert tokens.dtype == dtype
    assert tokens.tolist() == [vocabulary_size - 1, 0, vocabulary_size - 1]


@pytest.mark.parametrize("dtype", ["uint8", "int32", ">u2", "int64"])
def test_tokens_that_numpy_wrote_can_be_opened(tmp_path, dtype):
    np.save(tmp_path / "tokens.npy", np.arange(5, dtype=dtype))
    assert open_tokens(tmp_path / "tokens.npy").tolist() == [0, 1, 2, 3, 4]


def test_progress_is_told_in_bytes(written, tokenizers, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE", 100)
    text, reports = written(CONTENT, "😀"), []
    token_file(text, tokenizers["bpe"], lambda done, total: reports.append((done, total)))
    done, totals = zip(*reports, strict=True)
    assert list(done) == sorted(set(done))
    assert len(done) > 10
    assert done[-1] == text.byte_count == len((CONTENT + "😀").encode())
    assert set(totals) == {text.byte_count}


def test_no_tokens_at_all(written, tokenizers):
    ((path, _, _),) = written("text").spans
    assert token_file(Text([(path, 2, 2)]), tokenizers["bpe"]).tolist() == []


def test_a_failing_write_leaves_nothing_behind(written, cache):
    tokenizer = character_tokenizer(CONTENT)
    text = written(CONTENT + "?")
    with pytest.raises(InputError, match="characters that the model never saw"):
        token_file(text, tokenizer)
    assert cache() == []

    def full(done, total):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device; name a folder with room"):
        token_file(written(CONTENT), tokenizer, full)
    assert cache() == []


KILLED = """
import os, signal, sys
from pathlib import Path
from minitransformer.data import text as text_module
from minitransformer.data import character_tokenizer, token_file
from minitransformer.data.text import open_text
text_module.PIECE = 100
text = open_text([Path(sys.argv[1])])
token_file(text, character_tokenizer(text.pieces()), lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_write_leaves_nothing_under_the_final_name(written, cache):
    text = written(CONTENT)
    command = [sys.executable, "-c", KILLED, str(text.spans[0][0])]
    done = subprocess.run(command, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in cache()] == [".part"]
    tokenizer = character_tokenizer(CONTENT)
    np.testing.assert_array_equal(token_file(text, tokenizer), encode(tokenizer, CONTENT))


def npy(path, array, *changes):
    """Return the bytes of a ``.npy`` file, with ``changes`` made to its header, each as long as before."""
    np.save(path, array, allow_pickle=True)
    content = path.read_bytes()
    for old, new in changes:
        assert old in content
        content = content.replace(old, new.ljust(len(old)))
    return content


ROW = np.arange(5, dtype=np.uint16)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("array", "changes", "length", "message"),
    [
        (np.array([{}, 1], dtype=object), [], None, "is not a file of tokens"),
        (ROW.astype(np.float32), [], None, r"holds float32 of shape \(5,\); expected one row of integers"),
        (ROW.astype(bool), [], None, "holds bool of shape"),
        (ROW.reshape(1, 5), [], None, r"holds uint16 of shape \(1, 5\); expected one row"),
        (ROW[0], [], None, r"holds uint16 of shape \(\)"),
        (ROW, [], -1, "is not a file of tokens"),
        (ROW, [], 100, "is not a file of tokens"),
        (ROW, [], 5, "is not a file of tokens"),
        (ROW, [], 0, "is not a file of tokens"),
        (ROW, [(b"NUMPY", b"NUMPI")], None, "is not a file of tokens"),
        (ROW, [(b"(5,)", b"(6,)")], None, "is not a file of tokens"),
        (ROW, [(b"(5,), }", b"(-70,)}")], None, "is not a file of tokens"),
        (ROW, [(b"(5,), }" + b" " * 30, b"(" + b"9" * 30 + b",)}")], None, "is not a file of tokens"),
        (ROW, [(b"(5,), }" + b" " * 30, b"(4611686018427387904,)}")], None, "is not a file of tokens"),
        (ROW, [(b"(5,), }", b"(True,)}")], None, "is not a file of tokens"),
        (ROW, [(b"(5,), }", b"(5L,),}")], None, "is not a file of tokens"),
        (ROW, [(b"'shape'", b"b'shap'")], None, "is not a file of tokens"),
        (ROW, [(b"(5,)", b"(((((")], None, "is not a file of tokens"),
        (ROW, [(b"'<u2'", b"'<u9'")], None, "is not a file of tokens"),
        (ROW, [(b"\x01\x00v", b"\x07\x00v")], None, "is not a file of tokens"),
    ],
    ids=range(20),
)
def test_files_that_hold_no_tokens(tmp_path, array, changes, length, message):
    path = tmp_path / "tokens.npy"
    path.write_bytes(npy(path, array, *changes)[:length])
    with pytest.raises(InputError, match=message):
        open_tokens(path)


def test_a_damaged_header_is_never_another_error(tmp_path):
    path, random = tmp_path / "tokens.npy", np.random.default_rng(0)
    whole, refused = npy(path, ROW), 0
    for _ in range(500):
        content = bytearray(whole)
        for place in random.integers(0, 75, random.integers(1, 4)):
            content[place] = random.integers(0, 256)
        path.write_bytes(content)
        try:
            open_tokens(path)
        except InputError:
            refused += 1
    assert 400 < refused <= 500


def test_no_file_of_tokens(tmp_path):
    for path in (tmp_path / "nothing.npy", tmp_path):
        with pytest.raises(InputError, match="is not a file of tokens"):
            open_tokens(path)


def test_a_damaged_file_in_the_cache_is_made_again(tmp_path):
    (tmp_path / "text").write_text("so it goes. " * 50)
    text = open_text([tmp_path / "text"])
    tokenizer = train_tokenizer("characters", 0, text)
    expected = np.array(token_file(text, tokenizer))
    (path,) = (make_cache_folder("tokens")).glob("*.npy")
    path.write_bytes(path.read_bytes()[:200])
    np.testing.assert_array_equal(token_file(text, tokenizer), expected)


def test_a_text_without_spaces_is_cut_all_the_same(tmp_path):
    (tmp_path / "words").write_text("abcde abc de " * 10)
    tokenizer = train_tokenizer("bpe", 260, open_text([tmp_path / "words"]))
    (tmp_path / "text").write_text("abcde" * 250_000)
    text = open_text([tmp_path / "text"])
    longest = max(map(len, encode_pieces(tokenizer, text.pieces())))
    assert longest < 2**21
    assert decode_bytes(tokenizer, token_file(text, tokenizer)) == b"abcde" * 250_000
