"""Pictures: what they show is what the model does, read back from the pixels, and every label can be read."""

import numpy as np
import pytest
from common.pictures import HEADS, LAYERS, pixels_of
from scipy import ndimage

from minitransformer.errors import InputError
from minitransformer.inspection import attention_maps as module
from minitransformer.inspection import plots
from minitransformer.inspection.attention_maps import choose_maps, describe_left_out, plot_attention
from minitransformer.inspection.plots import plot_positions, plot_training


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
    with pytest.raises(ValueError, match="with 0 wherever visible is False"):
        picture(tmp_path, np.tile(maps, (2, 1, 1, 1)), visible=np.stack([np.ones((2, 2)), np.eye(2)]) > 0)
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
    drawn = choose_maps(grid, length)
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
    assert describe_left_out((2, 4), 10) == describe_left_out((12, 12), 60, layer=3, head=7) == ""
    assert describe_left_out((12, 12), 10) == (
        "drawn are layers 0, 3, 7, 11 of 0 to 11 (choose by --layer), "
        "and heads 0, 1, 2, 3 of 0 to 11 (choose by --head)\n"
    )
    assert (
        describe_left_out((12, 12), 60, layer=3)
        == "drawn are heads 0, 1, 2, 3 of 0 to 11 (choose by --head)\n"
    )


def test_positions_stand_where_labels_would_be_too_small(figures):
    length = 400
    plot_attention(np.eye(length)[None, None], ["x"] * length, "attention.png")
    axes = figures[0].axes[0]
    figures[0].draw_without_rendering()
    assert axes.get_xlabel() == "key (position)"
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


def test_one_layer_is_named_alone():
    with pytest.raises(InputError, match=r"^there is no layer 1; the model has only layer 0$"):
        plot_attention(np.ones((1, 1, 1, 1)), ["a"], "a.png", layer=1)
