"""Pictures: what they show is what the model does, read back from the pixels, and every label can be read."""

import sys

import numpy as np
import pytest
from common import emulated_cupy
from PIL import Image
from scipy import ndimage
from tokenizers import Tokenizer, decoders, models

from minitransformer.arrays import device_module
from minitransformer.command import cli
from minitransformer.data import character_tokenizer, encode
from minitransformer.errors import InputError
from minitransformer.inspection import attention_maps as module
from minitransformer.inspection import plots
from minitransformer.inspection.attention_maps import (
    attention_maps,
    left_out,
    plot_attention,
    shown_maps,
    token_labels,
)
from minitransformer.inspection.plots import (
    cosine_similarities,
    plot_positions,
    plot_training,
    position_table,
)
from minitransformer.models import GPT, GPTConfig
from minitransformer.pretrained.model_folder import load_model, save_model

# an old matplotlib with a new pyparsing
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:matplotlib")

CHARACTERS = "\n abcdefgh"
LAYERS, HEADS, CONTEXT = 2, 3, 16
IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def gpt(dtype="float64", device="cpu", **changes):
    """Return a GPT with weights so large that its attention is far from uniform."""
    settings = {
        "vocabulary_size": len(CHARACTERS),
        "context_length": CONTEXT,
        "layers": LAYERS,
        "heads": HEADS,
        "width": 12,
        "activation": "relu",
    }
    model = GPT(GPTConfig(**settings | changes)).build(seed=0, dtype=dtype, device=device)
    drawn = np.random.default_rng(5).normal(scale=0.6, size=model.flat.values.shape)
    model.flat.values[...] = device_module(device).asarray(drawn.astype(dtype))
    return model


def maps_by_hand(model, ids):
    """Return the attention maps of ``model`` (with ReLU), query by query, from its parameters alone."""
    values = {path: parameter.value for path, parameter in model.parameters().items()}
    x = values["embedding.table"][ids] + position_table(model)[: len(ids)]
    layers = []
    for layer in range(model.config.layers):
        own = {path.split(".", 2)[2]: value for path, value in values.items() if f"blocks.{layer}." in path}
        q, k, v = np.split(affine(norm(x, own, "norm1"), own, "attention.query_key_value"), 3, axis=1)
        width = x.shape[1] // model.config.heads
        maps, heads = [], []
        for first in range(0, x.shape[1], width):
            of_head = slice(first, first + width)
            probabilities = np.zeros((len(ids), len(ids)))
            for i in range(len(ids)):
                weights = np.exp(k[: i + 1, of_head] @ q[i, of_head] / np.sqrt(width))
                probabilities[i, : i + 1] = weights / weights.sum()
            maps.append(probabilities)
            heads.append(probabilities @ v[:, of_head])
        layers.append(maps)
        x = x + affine(np.concatenate(heads, axis=1), own, "attention.output")
        hidden = np.maximum(affine(norm(x, own, "norm2"), own, "feed_forward.hidden.0"), 0)
        x = x + affine(hidden, own, "feed_forward.output")
    return np.array(layers)


def affine(x, values, name):
    return x @ values[f"{name}.weight"] + values[f"{name}.bias"]


def norm(x, values, name):
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return scaled * values[f"{name}.gain"] + values[f"{name}.bias"]


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_the_maps_are_those_of_the_model(positions):
    model = gpt(positions=positions)
    maps = attention_maps(model, IDS)
    assert maps.shape == (LAYERS, HEADS, len(IDS), len(IDS))
    np.testing.assert_allclose(maps, maps_by_hand(model, IDS), rtol=0, atol=1e-12)
    assert maps[..., -1, :].max() > 2 / len(IDS), "this test wants a model that prefers some tokens"


def test_rows_sum_to_one_and_the_future_is_zero():
    maps = attention_maps(gpt(), IDS)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=0, atol=1e-12)
    assert not np.triu(maps, 1).any()


def test_a_later_token_changes_no_earlier_row():
    model, place = gpt(), 5
    other = IDS.copy()
    other[place:] = 7
    maps, changed = attention_maps(model, IDS), attention_maps(model, other)
    np.testing.assert_allclose(changed[..., :place, :], maps[..., :place, :], rtol=0, atol=1e-12)
    assert not np.allclose(changed[..., place, :], maps[..., place, :])


def test_the_maps_are_of_evaluation_and_of_the_models_type():
    model, with_dropout = gpt("float32"), gpt("float32", dropout=0.5)
    maps = attention_maps(with_dropout, IDS.tolist())
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, attention_maps(model, IDS))


def test_a_model_on_a_device_gives_the_same_on_the_host(monkeypatch):
    emulated_cupy.install(monkeypatch)
    np.testing.assert_array_equal(attention_maps(gpt(device="cuda"), IDS), attention_maps(gpt(), IDS))
    np.testing.assert_array_equal(position_table(gpt(device="cuda")), position_table(gpt()))


def test_weights_of_no_use_are_told():
    model = gpt("float32")
    model.flat.values[...] = 1e38
    with pytest.raises(InputError, match="not all finite"), np.errstate(all="ignore"):
        attention_maps(model, IDS)


def test_the_position_table():
    learned = gpt()
    np.testing.assert_array_equal(position_table(learned), learned.positions.table.value)
    table = position_table(gpt(positions="sinusoidal"))
    assert table.shape == (CONTEXT, 12)
    np.testing.assert_allclose(
        table[3, :4], [f(3 / s) for s in (1, 1e4 ** (2 / 12)) for f in (np.sin, np.cos)]
    )


def test_cosine_similarities():
    table = np.array([[1.0, 0], [3, 3], [-2, 0], [0, 0]])
    half = np.sqrt(0.5)
    expected = [[1, half, -1, 0], [half, 1, -half, 0], [-1, -half, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(cosine_similarities(table), expected, atol=1e-15)


def test_labels_make_every_token_visible():
    tokenizer = character_tokenizer("\n\t\r ab$é中\u200b😀")
    labels = dict(
        zip("\n\t\r ab$é中\u200b", ["⏎", "⇥", r"\r", "␣", *"ab$é", r"\u4e2d", r"\u200b"], strict=True)
    )
    assert token_labels(tokenizer, encode(tokenizer, "".join(labels))) == list(labels.values())


def test_labels_of_byte_pairs_are_text_or_escaped_bytes():
    words = ["def", "Ġself", "Ċ", "â", "Ĥ", "-" * 30, "<|end|>"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    expected = ["def", "␣self", "⏎", r"\xe2", r"\x82", "-" * 13 + "…", "<|end|>"]
    assert token_labels(tokenizer, range(len(words))) == expected


def test_labels_of_other_tokenizers_are_the_tokens():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "read": 1, "##ing": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    assert token_labels(tokenizer, [1, 2, 0]) == ["read", "##ing", "[UNK]"]


def known_maps(layers=LAYERS, heads=HEADS, length=4):
    """Return maps that all look at the first token alone, but the last row: by a share of its own in each."""
    maps = np.zeros((layers, heads, length, length))
    maps[..., 0] = 1
    shares = np.linspace(0.05, 0.95, layers * heads).reshape(layers, heads)
    maps[..., -1, 0], maps[..., -1, -1] = 1 - shares, shares
    return maps


def picture(tmp_path, maps, labels=None, **choice):
    path = tmp_path / "attention.png"
    plot_attention(maps, labels or list("abcd"[: maps.shape[-1]]), path, **choice)
    return pixels_of(path)


def pixels_of(path):
    """Return the colours of a PNG file, (height, width, 3) integers from 0 to 255."""
    with Image.open(path, formats=["PNG"]) as image:
        return np.array(image.convert("RGB")).astype(int)


def columns_of_ones(pixels):
    """Return (top, bottom, left) of each map's column of three ones, row by row."""
    blocks = ndimage.find_objects(ndimage.label(near(pixels, colour(1)))[0])
    return sorted(
        (rows.start, rows.stop, columns.start)
        for rows, columns in blocks
        if rows.stop - rows.start > 50 and columns.stop - columns.start > 20
    )


def last_cell(pixels, place):
    """Return the colour of the last row's last cell in a map of four tokens."""
    top, bottom, left = place
    cell = (bottom - top) / 3
    return pixels[round(top + 3.5 * cell), round(left + 3.5 * cell)]


def colour(probability):
    return of_map("viridis", np.sqrt(probability))


def of_map(name, place):
    """Return the colour at ``place``, from 0 to 1, of one of matplotlib's colour maps."""
    from matplotlib import colormaps

    return 255 * np.array(colormaps[name](place)[:3])


def near(pixels, expected):
    return (np.abs(pixels - expected) <= 4).all(axis=-1)


def test_a_picture_shows_each_cell_where_it_belongs(tmp_path):
    maps = known_maps()
    pixels = picture(tmp_path, maps, layer=1, head=0)
    ((top, bottom, left),) = columns_of_ones(pixels)
    cell = (bottom - top) / 3  # the first three rows look at the first token
    assert cell == pytest.approx(module.SMALLEST_MAP * plots.DOTS / 4, abs=1)
    expected = maps[1, 0]
    for i in range(4):
        for j in range(4):
            seen = pixels[round(top + (i + 0.5) * cell), round(left + (j + 0.5) * cell)]
            if j > i:
                np.testing.assert_array_equal(seen, 255, err_msg=f"the future, {i}, {j}")
            else:
                assert near(seen, colour(expected[i, j])), (i, j, seen)


def test_a_zero_is_dark_and_a_one_is_bright():
    assert colour(0).sum() + 250 < colour(1).sum() < 3 * 255 - 150, "and nothing is white"


def test_the_grid_has_a_row_for_each_layer_and_a_column_for_each_head(tmp_path):
    maps = known_maps()
    pixels = picture(tmp_path, maps)
    found = columns_of_ones(pixels)
    assert len(found) == LAYERS * HEADS
    for place, expected in zip(found, maps[..., 3, 3].ravel(), strict=True):
        assert near(last_cell(pixels, place), colour(expected)), place
    assert len({top for top, _, _ in found}) == LAYERS
    assert len({left for _, _, left in found}) == HEADS


@pytest.mark.parametrize(
    ("choice", "pairs", "rows", "columns"),
    [({"layer": 1}, [(1, head) for head in range(6)], 2, 4), ({"head": 5}, [(0, 5), (1, 5)], 1, 2)],
    ids=["layer", "head"],
)
def test_a_layer_or_a_head_can_be_chosen(tmp_path, choice, pairs, rows, columns):
    maps = known_maps(heads=6)
    pixels = picture(tmp_path, maps, **choice)
    found = columns_of_ones(pixels)
    for place, pair in zip(found, pairs, strict=True):
        assert near(last_cell(pixels, place), colour(maps[pair][3, 3])), pair
    assert len({top for top, _, _ in found}) == rows
    assert len({left for _, _, left in found}) == columns


def test_what_is_visible_can_be_said(tmp_path):
    maps = np.full((1, 1, 2, 2), 0.5)
    with pytest.raises(ValueError, match="with 0 wherever visible is False"):
        picture(tmp_path, maps)
    pixels = picture(tmp_path, maps, visible=np.ones((2, 2), bool))
    side = round(module.SMALLEST_MAP * plots.DOTS)
    assert near(pixels, colour(0.5)).sum() == pytest.approx(side**2, rel=0.03)
    with pytest.raises(ValueError, match="for 3 labels"):
        picture(tmp_path, maps, list("abc"))


@pytest.fixture
def figures(monkeypatch):
    """What would have been saved."""
    caught = []
    monkeypatch.setattr(module, "save_picture", lambda figure, path: caught.append(figure))
    return caught


LABELS = ["␣return", "⏎␣␣␣", "def", "␣ValueError", "(", r"\u4e2d", "-" * 13 + "…", "$\\x$", "W"]


@pytest.mark.parametrize("length", [1, 10, 30, 60])
@pytest.mark.parametrize("grid", [(1, 1), (2, 4), (4, 2), (12, 12)], ids=str)
@pytest.mark.parametrize("labels", [["W", "g"], LABELS], ids=["characters", "words"])
def test_labels_can_be_read(figures, length, grid, labels):
    maps = np.tile(np.eye(length), (*grid, 1, 1))
    drawn = shown_maps(grid, length)
    plot_attention(maps, [labels[i % len(labels)] for i in range(length)], "attention.png")
    (figure,) = figures
    figure.set_dpi(plots.DOTS)
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in shown_texts(axes)]
    assert sum(text.get_text() in labels for text in texts) == length * sum(map(len, drawn))
    assert min(text.get_fontsize() for text in texts) >= 6
    assert max(figure.get_size_inches()) < 18
    assert all(text.get_fontfamily() == [module.FONT] for text in texts if text.get_text() in labels)
    boxes, panels = (
        np.array([part.get_window_extent().extents for part in parts]) for parts in (texts, figure.axes)
    )
    assert not np.triu(overlap(boxes, boxes), 1).any()
    assert not overlap(boxes, panels).any()


def shown_texts(axes):
    texts = axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()
    return [text for text in texts if text.get_text() and text.get_visible()]


def overlap(boxes, others):
    """Return which ``boxes`` (left, bottom, right, top) share more than a pixel with which ``others``."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    return (high - low > 1).all(axis=-1)


@pytest.mark.parametrize(
    ("length", "choice", "layers", "heads"),
    [
        (10, {}, [0, 3, 7, 11], [0, 1, 2, 3]),
        (50, {}, [0, 5, 11], [0, 1, 2]),
        (60, {}, [0, 11], [0, 1]),
        (400, {}, [0, 3, 7, 11], [0, 1, 2, 3]),
        (10, {"layer": 3}, [3], list(range(12))),
        (60, {"layer": 3}, [3], [0, 1, 2, 3]),
        (60, {"head": 7}, [0, 3, 7, 11], [7]),
        (60, {"layer": 3, "head": 7}, [3], [7]),
    ],
)
def test_of_many_maps_some_are_drawn(figures, length, choice, layers, heads):
    plot_attention(np.tile(np.eye(length), (12, 12, 1, 1)), ["x"] * length, "attention.png", **choice)
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    assert titles == [f"layer {layer}, head {head}" for layer in layers for head in heads]


def test_what_is_left_out_is_said():
    assert left_out((2, 4), 10) == left_out((12, 12), 60, layer=3, head=7) == ""
    assert left_out((12, 12), 10) == (
        "drawn are layers 0, 3, 7, 11 of 0 to 11 (choose by --layer), "
        "and heads 0, 1, 2, 3 of 0 to 11 (choose by --head)\n"
    )
    assert left_out((12, 12), 60, layer=3) == "drawn are heads 0, 1, 2, 3 of 0 to 11 (choose by --head)\n"


def test_positions_stand_where_labels_would_be_too_small(figures):
    length = 400
    plot_attention(np.eye(length)[None, None], ["x"] * length, "attention.png")
    axes = figures[0].axes[0]
    figures[0].draw_without_rendering()
    assert axes.get_xlabel() == "looks at (position)"
    assert all(float(text.get_text().replace("−", "-")) % 1 == 0 for text in axes.get_xticklabels())


@pytest.mark.parametrize("ending", plots.FORMATS)
def test_every_format_can_be_written(tmp_path, ending):
    path = tmp_path / f"a.{ending.upper()}"
    plot_attention(known_maps(1, 1), list("abcd"), path)
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "jpg": b"\xff\xd8", "webp": b"RIFF"}
    assert path.read_bytes().startswith(starts[ending])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_picture_of_positions_shows_the_table_and_its_similarities(tmp_path):
    table = np.where(np.arange(8)[:, None] % 2 == np.arange(10) % 2, 3.0, -3.0)  # a chessboard
    path = tmp_path / "positions.png"
    plot_positions(table, path, "learned positions")
    pixels = pixels_of(path)
    height, width = pixels.shape[:2]
    assert (width, height) == pytest.approx((11 * plots.DOTS, 5 * plots.DOTS), rel=0.05)
    blocks = [
        block
        for end in (0.0, 1.0)
        for block in ndimage.find_objects(ndimage.label(near(pixels, of_map("RdBu_r", end)))[0])
        if all(extent.stop - extent.start > 20 for extent in block)
    ]
    cells = [block for block in blocks if block[1].stop < 0.45 * width]
    similarities = [block for block in blocks if block[1].start > 0.5 * width]
    assert len(cells) == 8 * 10
    assert len(similarities) == 8 * 8


def test_a_table_of_zeros_is_white(tmp_path):
    plot_positions(np.zeros((1, 1)), tmp_path / "positions.png")
    pixels = pixels_of(tmp_path / "positions.png")
    height, width = pixels.shape[:2]
    assert (pixels[height // 2, width // 4 : width // 3] > 240).all()


def test_a_constant_learning_rate_is_drawn_from_zero(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    line = {"train_loss": 1.0, "val_loss": None, "learning_rate": 5e-4, "gradient_norm": 2.0}
    plot_training([{"step": step, **line} for step in (10, 20)], tmp_path / "training.png")
    assert [axes.get_ylim()[0] for axes in figures[0].axes[1:]] == [0, 0]


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
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_the_commands(folder, minitransformer):
    assert minitransformer("attention", "model", "--text", "bad cab\n") == (
        0,
        "attention.png shows where each of 8 tokens looks\n",
        "",
    )
    chosen = "--layer", 1, "--head", 2, "--output", "one.PNG"
    status, output, _ = minitransformer("attention", "model", "--text", "bad cab\n", *chosen)
    assert (status, output) == (0, "one.PNG shows where each of 8 tokens looks\n")
    grid, one = (pixels_of(folder / name).shape for name in ("attention.png", "one.PNG"))
    assert grid[0] > 1.7 * one[0]
    assert grid[1] > 2.3 * one[1]
    ids = encode(character_tokenizer(CHARACTERS), "bad cab\n")
    plot_attention(
        *(attention_maps(load_model(folder / "model"), ids), [*"bad␣cab⏎"], folder / "ours.png"),
        layer=1,
        head=2,
    )
    np.testing.assert_array_equal(pixels_of(folder / "one.PNG"), pixels_of(folder / "ours.png"))

    expected = "positions.png shows the learned encoding of 16 positions\n"
    assert minitransformer("positions", "model") == (0, expected, "")
    assert pixels_of(folder / "positions.png").shape[1] > 1000


def test_the_command_says_what_it_leaves_out(minitransformer, monkeypatch):
    monkeypatch.setattr(module, "MOST_ABREAST", 2)
    assert minitransformer("attention", "model", "--text", "bad", "--output", "few.png") == (
        0,
        "few.png shows where each of 3 tokens looks\ndrawn are heads 0, 1 of 0 to 2 (choose by --head)\n",
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


def test_one_layer_is_named_alone():
    with pytest.raises(InputError, match=r"^there is no layer 1; the model has only layer 0$"):
        plot_attention(np.ones((1, 1, 1, 1)), ["a"], "a.png", layer=1)
