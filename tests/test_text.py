"""Text that is read piece by piece: every byte and every character comes back, wherever a piece ends."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitransformer.data import Text
from minitransformer.data import text as text_module
from minitransformer.data.text import PIECE, sha256, split_text, text_files, text_of
from minitransformer.errors import InputError

HARD = "naïve\r\n\ttext\u2028\u0085 e\u0301 日本語 😀\r👩‍🚀\x00\x1c\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write each string to a file of its own and return their text."""
    folder = tmp_path_factory.mktemp("texts")

    def write(*contents):
        files = [folder / str(number) for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content.encode())
        return text_of(files)

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
    assert text_files(folder / named) == [folder / name for name in names]
    assert text_files(str(folder / named)) == [folder / name for name in names]


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    (tmp_path / "[1].txt").write_text("a")
    assert text_files(tmp_path / "[1].txt") == [tmp_path / "[1].txt"]


def test_paths_that_name_no_file(folder):
    (folder / "empty").mkdir()
    (folder / "empty" / ".hidden").write_text("a")
    for named, message in (
        ("nothing.txt", "there is no file .*nothing.txt"),
        ("*.zip", r"no file matches .*\*\.zip"),
        ("empty", "the folder .* holds no files; expected text files"),
    ):
        with pytest.raises(InputError, match=message):
            text_files(folder / named)


def test_empty_files_among_others_are_left_out(written):
    text = written("", "a", "", "b", "")
    assert text.read() == "ab"
    assert [path.name for path, _, _ in text.spans] == ["1", "3"]


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_but_empty_files(written, count):
    with pytest.raises(InputError, match="0 is empty; expected text"):
        written(*[""] * count)


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
        text_of([path]).read()


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
