"""Text that is read piece by piece: every byte and every character comes back, wherever a piece ends."""

import codecs
import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitransformer.data import Text
from minitransformer.data import text as text_module
from minitransformer.data.text import PIECE, open_text, sha256, split_text
from minitransformer.data.text_files import find_texts
from minitransformer.errors import InputError
from minitransformer.recipes import load_recipe
from minitransformer.recipes.run import train_recipe
from minitransformer.system.file_names import WRITTEN

HARD = "naïve\r\n\ttext\u2028\u0085 e\u0301 日本語 😀\r👩‍🚀\x00\x1c\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write each string to a file of its own and return their text."""
    folder = tmp_path_factory.mktemp("texts")

    def write(*contents):
        files = [folder / str(number) for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content.encode())
        return open_text(files)

    return write


@pytest.fixture
def pieces_of(monkeypatch):
    """Set how many bytes are read at a time."""
    return lambda size: monkeypatch.setattr(text_module, "PIECE", size)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_pieces_give_every_character_back(written, pieces_of, size):
    pieces_of(size)
    text = written(HARD, "b", HARD)
    assert "".join(text.pieces()) == text.read() == HARD + "b" + HARD
    assert ["".join(document) for document in text.documents()] == [HARD, "b", HARD]
    assert text.byte_count == len((HARD + "b" + HARD).encode())
    assert sha256(text) == hashlib.sha256((HARD + "b" + HARD).encode()).hexdigest()


def test_characters_lie_across_the_borders_of_whole_pieces(written):
    content = "a" + "😀" * (PIECE // 2)
    pieces = list(written(content).pieces())
    assert "".join(pieces) == content
    assert 2 <= len(pieces) <= 3
    assert max(len(piece.encode()) for piece in pieces) < PIECE + 4


def test_a_span_is_a_part_of_a_file(written):
    ((path, _, _),) = written("añb😀c").spans
    text = Text([(path, 1, 3), (path, 4, 8)])
    assert list(text.pieces()) == ["ñ", "😀"]
    assert text.byte_count == 6
    assert sha256(text, text) == hashlib.sha256("ñ😀ñ😀".encode()).hexdigest()


@pytest.mark.parametrize("characters", [0, 1, 3, 5, 9])
def test_reading_can_end_early(written, pieces_of, characters):
    pieces_of(2)
    assert written("añb", "😀c").read(characters) == "añb😀c"[:characters]


@given(contents=st.lists(st.text(min_size=1), min_size=1, max_size=4), data=st.data())
def test_a_text_is_split_at_any_character(written, contents, data):
    text, whole = written(*contents), "".join(contents)
    place = data.draw(st.integers(0, len(whole)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "PIECE", data.draw(st.sampled_from([1, 3, PIECE])))
        first, rest = split_text(text, place)
        assert (first.read(), rest.read()) == (whole[:place], whole[place:])
    assert all(start < stop for _, start, stop in first.spans + rest.spans)
    assert len(first.spans) + len(rest.spans) <= len(contents) + 1


@pytest.fixture
def folder(tmp_path):
    """A folder of folders, with hidden files and a hidden folder among them."""
    for name in ("b.txt", "a.txt", "c.md", "deep/a.txt", "deep/er/z.txt", ".hidden", ".git/d.txt"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "texts"


@pytest.mark.parametrize(
    ("named", "names"),
    [
        ("", ["a.txt", "b.txt", "c.md", "deep/a.txt", "deep/er/z.txt"]),
        ("deep", ["deep/a.txt", "deep/er/z.txt"]),
        ("c.md", ["c.md"]),
        (".hidden", [".hidden"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("[bc].*", ["b.txt", "c.md"]),
        ("?.md", ["c.md"]),
        ("*", ["a.txt", "b.txt", "c.md"]),
        ("**/*.txt", ["a.txt", "b.txt", "deep/a.txt", "deep/er/z.txt"]),
        ("**/**/*.txt", ["a.txt", "b.txt", "deep/a.txt", "deep/er/z.txt"]),
    ],
)
def test_a_path_names_files_in_order_and_once(folder, named, names):
    assert find_texts(folder / named)[0] == [folder / name for name in names]
    assert find_texts(str(folder / named)) == ([folder / name for name in names], [])


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    (tmp_path / "[1].txt").write_text("a")
    assert find_texts(tmp_path / "[1].txt") == ([tmp_path / "[1].txt"], [])


def test_paths_that_name_no_file(folder):
    (folder / "empty").mkdir()
    (folder / "empty" / ".hidden").write_text("a")
    for named, message in (
        ("nothing.txt", "there is no file .*nothing.txt"),
        ("*.zip", r"no file matches .*\*\.zip"),
        ("empty", "the folder .* holds no files; expected text files"),
    ):
        with pytest.raises(InputError, match=message):
            find_texts(folder / named)


@pytest.fixture
def trained_in(folder):
    """The folder again, now with two runs, a model and pictures in it, and a file that is half written."""
    for name in (
        *("runs/one/metrics.jsonl", "runs/one/run.json", "runs/one/checkpoint-3/tokenizer.json"),
        *("runs/two/metrics.jsonl", "runs/two/checkpoint-5/config.json", "runs/two/notes.txt"),
        *("deep/gpt2/model.safetensors", "deep/gpt2/vocab.json", "deep/gpt2/more/merges.txt"),
        *("a.png", "deep/b.PDF", ".a.txt.0123abcd.part"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


LEFT_OUT = ["a.png", "deep/b.PDF", "deep/gpt2", "runs/one", "runs/two"]


@pytest.mark.parametrize(
    ("named", "texts", "left_out"),
    [
        ("", ["a.txt", "b.txt", "c.md", "deep/a.txt", "deep/er/z.txt"], LEFT_OUT),
        ("**/*", ["a.txt", "b.txt", "c.md", "deep/a.txt", "deep/er/z.txt"], LEFT_OUT),
        ("*", ["a.txt", "b.txt", "c.md"], ["a.png"]),
        ("runs/*/*.txt", [], ["runs/two"]),
        (".a*", [], [".a.txt.0123abcd.part"]),
        ("a.png", ["a.png"], []),
        ("runs/one/run.json", ["runs/one/run.json"], []),
    ],
)
def test_what_was_written_is_no_text_unless_it_is_named(trained_in, named, texts, left_out):
    if texts:
        expected = [trained_in / name for name in texts], [trained_in / name for name in left_out]
        assert find_texts(trained_in / named) == expected
    else:
        with pytest.raises(InputError, match="apart from models, runs and pictures"):
            find_texts(trained_in / named)


@pytest.mark.parametrize("named", ["", "*", "**/*"])
def test_texts_beside_a_model(folder, named):
    for name in ("model.safetensors", "config.json", "tokenizer.json", "deep/config.json"):
        (folder / name).write_text(name)
    texts, left_out = find_texts(folder / named)
    assert [folder / name for name in ("a.txt", "b.txt", "c.md")] == [
        file for file in texts if file.parent == folder
    ]
    assert left_out == [folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    assert (folder / "deep" / "config.json" in texts) == (named != "*")


def test_all_that_runs_write_is_known(tmp_path):
    recipe = load_recipe("sort", ["max_steps=1", "layers=1", "heads=1", "width=8"])
    train_recipe(recipe, tmp_path)
    of_others = {"special_tokens_map.json"}
    assert {path.name for path in tmp_path.iterdir()} == {*WRITTEN, "checkpoint-1"} - of_others


def test_paths_from_where_one_stands(trained_in, monkeypatch):
    monkeypatch.chdir(trained_in)
    names = ["a.txt", "b.txt", "c.md", "deep/a.txt", "deep/er/z.txt"]
    for named in (".", "./", "**/*", "./**/*"):
        assert find_texts(named) == ([Path(name) for name in names], [Path(name) for name in LEFT_OUT])


def test_files_that_only_look_like_a_run(folder):
    """The names of a run are common ones: only together do they make one."""
    for name in ("logs/metrics.jsonl", "json/run.json", "json/config.json", "json/corpus.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    texts, left_out = find_texts(folder)
    assert len(texts) == 5 + 4
    assert left_out == []


def test_empty_files_among_others_are_left_out(written):
    text = written("", "a", "", "b", "")
    assert text.read() == "ab"
    assert [path.name for path, _, _ in text.spans] == ["1", "3"]


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_but_empty_files(written, count):
    with pytest.raises(InputError, match="0 is empty; expected text"):
        written(*[""] * count)


@pytest.mark.parametrize("size", [1, 2, 3, PIECE])
def test_a_byte_order_mark_is_no_character(tmp_path, pieces_of, size):
    pieces_of(size)
    files = [tmp_path / name for name in "abc"]
    for file, content in zip(files, ("one é", "", "\ufeffthree"), strict=True):  # a second one is a character
        file.write_bytes(codecs.BOM_UTF8 + content.encode())
    text, whole = open_text(files), "one é\ufeffthree"
    assert text.read() == whole
    assert ["".join(document) for document in text.documents()] == ["one é", "\ufeffthree"]
    assert text.byte_count == len(whole.encode())
    assert sha256(text) == hashlib.sha256(whole.encode()).hexdigest()
    for characters in range(len(whole)):
        first, rest = split_text(text, characters)
        assert (first.read(), rest.read()) == (whole[:characters], whole[characters:])


def test_nothing_but_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(codecs.BOM_UTF8)
    with pytest.raises(InputError, match="a is empty; expected text"):
        open_text([tmp_path / "a"])


@pytest.mark.parametrize(
    "content", ["Don’t panic – “only 16 bits” a letter.\r\n", "Все семьи похожи.\n" * 200]
)
@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be", "utf-32le", "utf-32be"])
@pytest.mark.parametrize("mark", ["\ufeff", ""], ids=["marked", "unmarked"])
def test_several_bytes_a_letter_are_recognised(tmp_path, encoding, mark, content):
    path, name = tmp_path / "a text.txt", encoding[:6] if mark else encoding
    path.write_bytes((mark + content).encode(encoding))
    with pytest.raises(InputError, match=f"a text.txt is text in {name.upper()}; expected UTF-8") as error:
        open_text([path])
    remedy = str(error.value).partition(". Convert it: ")[2]
    assert remedy == f"iconv -f {name} -t utf-8 '{path}' > '{path}'.utf8"
    subprocess.run(remedy, shell=True, check=True, timeout=60)
    assert open_text([tmp_path / "a text.txt.utf8"]).read() == content


def test_bytes_next_to_zero_in_utf_8_are_text(tmp_path):
    for number, content in enumerate(("a\0" * 7, "abc\0" * 99, "\0" * 99, "\t\n" * 99, "0\0\0\0x" * 99)):
        (tmp_path / str(number)).write_text(content)
        assert open_text([tmp_path / str(number)]).read() == content


@pytest.mark.parametrize(
    ("content", "byte", "offset"),
    [
        (b"abc\xff", "0xff", "3"),
        (b"\x80abc", "0x80", "0"),
        (b"ab\xc3\xa4\xc3 x", "0xc3", "4"),
        (b"ab\xf0\x9f\x98", "0xf0", "2"),
        (b"ab\xed\xa0\x80", "0xed", "2"),
        (b"a" * (PIECE + 5) + b"\xe9", "0xe9", "1,048,581"),
        (b"a" * (PIECE - 1) + b"\xe9\xe9", "0xe9", "1,048,575"),
        (b"a" * (PIECE - 2) + b"\xf0\x9f\x98", "0xf0", "1,048,574"),
        (b"a" * 3 * PIECE + b"\xf0\x9f", "0xf0", "3,145,728"),
    ],
    ids=range(9),
)
def test_what_is_not_utf_8_is_told_with_its_place(tmp_path, content, byte, offset):
    path = tmp_path / "text"
    path.write_bytes(content)
    message = f"text is not UTF-8 text: byte {byte} at offset {offset} can't be decoded"
    with pytest.raises(InputError, match=message):
        open_text([path]).read()


def test_the_place_is_counted_from_the_start_of_the_file(tmp_path, pieces_of):
    pieces_of(4)
    path = tmp_path / "text"
    path.write_bytes(b"0123456789\xc3(")
    with pytest.raises(InputError, match="byte 0xc3 at offset 10 can't"):
        Text([(path, 3, 12)]).read()


def test_a_file_that_shrinks_while_it_is_read(written):
    text = written("a" * 3 * PIECE)
    pieces = text.pieces()
    next(pieces)
    text.spans[0][0].write_text("a" * (PIECE + 5))
    with pytest.raises(InputError, match="0 has become shorter while it was read"):
        list(pieces)
