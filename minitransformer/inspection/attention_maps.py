"""Attention maps: the attention weights of each head of each layer, taken from the model's own forward."""

import numpy as np

from minitransformer.arrays import array_module, to_numpy
from minitransformer.data.tokenizer import decode_bytes, is_byte_level
from minitransformer.dispatch import inference, watching
from minitransformer.errors import InputError
from minitransformer.functional import attention_weights, visible
from minitransformer.inspection.plots import check_picture, prepare_drawing, save_picture

COLOURS = "viridis"  # readable by the colour-blind, and in grey; no colour is as light as a masked cell
COLOUR_TICKS = (0, 0.02, 0.1, 0.25, 0.5, 1)
FONT = "DejaVu Sans"  # comes with matplotlib
WHITESPACE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
LONGEST_LABEL = 14  # characters
MOST_ABREAST = 4  # maps per row; in more, labels would be too small to read

# inches
LARGEST_CELL, SMALLEST_LABELLED_CELL = 0.3, 0.1  # of 0.1 inches: labels of 6 points
USUAL_GRID, LARGEST_GRID, SMALLEST_MAP = 14, 16, 1.3
GAP, TITLE_ROOM, BAR_WIDTH, LARGEST_BAR = 0.15, 0.28, 0.12, 4
POINTS, LARGEST_FONT = 72, 10  # POINTS are an inch


def compute_attention_maps(model, ids):
    """Return ``maps, visible``: the attention weights of ``model`` on ``ids``, and its masks, on the host.

    ``ids`` are T tokens, a sequence of integers. ``maps`` (L, H, T, T), of L layers and in the model's type,
    has the weight of query i on key j in ``maps[layer, head, i, j]``: each row sums to 1. ``visible`` (L, T,
    T) are booleans, False where the mask of a layer hides key j from query i; in a GPT that is where j > i.

    They are of one forward in evaluation (no dropout), and computed from the queries, keys and settings of
    its attention operations. Operations are told apart by the paths of their layers, whatever the index of
    the block; of several kinds (a decoder has self-attention and cross-attention) the maps are those of the
    first that has T queries and T keys. Raises InputError if there are no tokens, or more than the context
    length, and if a map contains NaN or infinity.
    """
    ids = np.asarray(ids, np.int64)
    fitting = model.config.context_length
    if not len(ids):
        raise InputError("the text is empty; expected at least one token")
    if len(ids) > fitting:
        raise InputError(f"the text has {len(ids):,} tokens; the model sees at most {fitting:,} at once")
    xp = array_module(model.flat.values)
    with inference(), watching(_Collector()) as collector:
        model.hidden({"ids": xp.asarray(ids[None])})
    shape = len(ids), len(ids)
    kinds = [calls for calls in collector.calls.values() if calls[0][1].shape == shape]
    if not kinds:
        raise InputError(f"the model has no attention with {len(ids)} queries and {len(ids)} keys to show")
    maps, seen = map(np.stack, zip(*kinds[0], strict=True))
    if not np.isfinite(maps).all():
        raise InputError("the model's attention contains NaN or infinity; expected weights that are finite")
    return maps, seen


class _Collector:
    """A watcher that keeps maps (H, Tq, Tk) and what is visible (Tq, Tk) of the only row of a batch.

    ``calls`` has a list of these pairs per kind of attention: the path of its layer without indices.
    """

    def __init__(self):
        self.calls = {}

    def saw_forward(self, name, path, arrays, settings, y, saved):
        if name != "attention":
            return
        q, k, _ = arrays
        settings = {key: settings[key] for key in ("mask", "bias", "scale") if key in settings}
        weights = to_numpy(attention_weights(q, k, **settings))[0]
        seen = visible(array_module(q), settings["mask"], *weights.shape[1:])
        seen = np.ones(weights.shape[1:], bool) if seen is None else to_numpy(seen)[0]
        kind = ".".join(part for part in path.split(".") if not part.isdigit())
        self.calls.setdefault(kind, []).append((weights, seen))


@prepare_drawing()
def label_tokens(tokenizer, ids):
    """Return a short string for each of ``ids`` with visible whitespace: ``["def", "␣f", "⏎"]``.

    What the font lacks is written as an escape, such as ``"\\r"`` or, for a part of a character, ``"\\xe2"``;
    long tokens end in "…".
    """
    return [_label_token(tokenizer, int(index)) for index in ids]


@prepare_drawing()
def plot_attention(maps, labels, path, *, layer=None, head=None, visible=None):
    """Draw attention ``maps`` (L, H, T, T) of L layers to the file ``path``: rows are queries, columns keys.

    ``labels`` are T strings, one per token (see ``label_tokens``); where there are too many to be read,
    positions are drawn instead. ``layer`` and ``head``, counted from 0, choose what is drawn: one map, the
    heads of one layer, one head in every layer, or by default everything, one row per layer; but no more
    than ``choose_maps`` returns, so that it can be read.
    ``visible`` are booleans (T, T) or (L, T, T), False where a key is masked: these cells stay blank. By
    default the keys after a query are, as in a GPT. Maps that are not 0 in masked cells raise ValueError.

    The ending of ``path`` (.png, .pdf, .svg, …) says in which format. Raises InputError for another ending,
    a file that can't be written, and a layer or a head that is not there.
    """
    check_picture(path)
    length = len(labels)
    visible = np.tri(length, dtype=bool) if visible is None else visible
    if maps.shape[2:] != (length, length) or (maps.any(axis=1) & ~visible).any():
        raise ValueError(
            f"plot_attention: maps of shape {maps.shape} for {length} labels; expected (L, H, "
            f"{length}, {length}) with 0 wherever visible is False"
        )
    layers, heads = choose_maps(maps.shape[:2], length, layer=layer, head=head)
    pairs = [(one_layer, one_head) for one_layer in layers for one_head in heads]
    columns = len(heads) if min(len(layers), len(heads)) > 1 else min(len(pairs), _count_abreast(length))
    visible = np.broadcast_to(visible, (len(maps), length, length))
    panels = {
        f"layer {one_layer}, head {one_head}": np.ma.masked_where(
            ~visible[one_layer], maps[one_layer, one_head]
        )
        for one_layer, one_head in pairs
    }
    save_picture(_draw_figure(panels, labels, columns), path)


def choose_maps(counts, length, *, layer=None, head=None):
    """Return the layers and the heads, two lists, of which ``plot_attention`` draws every pair.

    ``counts`` are how many layers and heads there are, ``length`` how many tokens, ``layer`` and ``head``
    what was chosen. Of many layers some from the first to the last are drawn, of many heads the first: four
    by four, or fewer of long texts, whose labels need the room.
    """
    layers, heads = _choose_numbers("layer", layer, counts[0]), _choose_numbers("head", head, counts[1])
    most = _count_abreast(length)
    if min(len(layers), len(heads)) == 1:
        most **= 2  # they are drawn in several rows
    places = range(min(most, len(layers)))
    return [layers[place * (len(layers) - 1) // max(1, len(places) - 1)] for place in places], heads[:most]


def describe_left_out(counts, length, *, layer=None, head=None):
    """Return a line that says what ``plot_attention`` leaves out, and how to see it; "" if that is nothing.

    The arguments are those of ``choose_maps``.
    """
    shown = choose_maps(counts, length, layer=layer, head=head)
    parts = []
    for name, number, count, numbers in zip(("layer", "head"), (layer, head), counts, shown, strict=True):
        if number is None and len(numbers) < count:
            parts.append(f"{name}s {', '.join(map(str, numbers))} of 0 to {count - 1} (choose by --{name})")
    return f"drawn are {', and '.join(parts)}\n" if parts else ""


def _count_abreast(length):
    """Return how many maps of ``length`` tokens fit in a row."""
    labelled = int(LARGEST_GRID / (SMALLEST_LABELLED_CELL * length))
    return min(labelled, MOST_ABREAST) if labelled > 1 else MOST_ABREAST


def _choose_numbers(name, number, count):
    if number is None:
        return list(range(count))
    if not 0 <= number < count:
        existing = f"{name}s 0 to {count - 1}" if count > 1 else f"only {name} 0"
        raise InputError(f"there is no {name} {number}; the model has {existing}")
    return [number]


def _draw_figure(panels, labels, columns):
    """Return a figure of ``panels``, ``{title: map}``, with ``columns`` of them in a row and a colour bar."""
    from matplotlib.figure import Figure  # noqa: PLC0415  slow to import, and most commands draw nothing

    rows = -(-len(panels) // columns)
    side = _choose_side(len(labels), max(rows, columns))
    width, height = columns * (side + GAP), rows * (side + TITLE_ROOM)
    figure = Figure(figsize=(width, height))

    def add_axes(left, top, axes_width, axes_height):
        bottom = height - top - axes_height
        return figure.add_axes((left / width, bottom / height, axes_width / width, axes_height / height))

    for index, (title, panel) in enumerate(panels.items()):
        row, column = divmod(index, columns)
        axes = add_axes(column * (side + GAP), TITLE_ROOM + row * (side + TITLE_ROOM), side, side)
        image = _draw(axes, panel, title)
        _mark(axes.yaxis, labels, side, "query" if column == 0 else None)
        _mark(axes.xaxis, labels, side, "key" if index + columns >= len(panels) else None)
    bar = add_axes(width, TITLE_ROOM, BAR_WIDTH, min(height - TITLE_ROOM, LARGEST_BAR))
    colour_bar = figure.colorbar(image, cax=bar, ticks=COLOUR_TICKS, format="{x:g}")
    colour_bar.set_label("probability (blank: masked)")
    colour_bar.outline.set_visible(False)
    return figure


def _choose_side(length, maps):
    """Return the inches of a map of ``length`` tokens, of which ``maps`` are in a row."""
    wanted = max(USUAL_GRID / maps, SMALLEST_LABELLED_CELL * length)
    return max(SMALLEST_MAP, min(wanted, LARGEST_CELL * length, LARGEST_GRID / maps))


def _draw(axes, panel, title):
    from matplotlib.colors import PowerNorm  # noqa: PLC0415

    axes.set_title(title, fontsize=LARGEST_FONT, pad=4)
    axes.spines[:].set_visible(False)
    # square roots tell the small probabilities apart, of which a long row is made
    return axes.imshow(panel, cmap=COLOURS, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")


def _mark(axis, labels, side, name):
    """Write ``labels`` along ``axis``, ``side`` inches long, and ``name``; nothing if that is None."""
    axis.set_tick_params(length=0, pad=2)
    cell = side / len(labels)
    if name is None:
        axis.set_ticks([])
    elif cell < SMALLEST_LABELLED_CELL:
        axis.get_major_locator().set_params(integer=True)
        axis.set_tick_params(labelsize=7)
        axis.set_label_text(f"{name} (position)")
    else:
        upright = axis.axis_name == "y" or max(map(len, labels)) == 1
        axis.set_ticks(
            range(len(labels)),
            labels,
            fontsize=min(0.85 * cell * POINTS, LARGEST_FONT),
            family=FONT,
            rotation=0 if upright else 90,
            parse_math=False,
        )
        axis.set_label_text(name)


def _label_token(tokenizer, index):
    if is_byte_level(tokenizer):
        token = decode_bytes(tokenizer, [index]).decode("utf-8", "backslashreplace")
    else:
        token = tokenizer.id_to_token(index)
    label = "".join(map(_escape, token.translate(WHITESPACE)))
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _escape(character):
    """Return ``character``, or its escape if it would be invisible."""
    from matplotlib.font_manager import findfont, get_font  # noqa: PLC0415

    in_font = get_font(findfont(FONT)).get_char_index(ord(character))
    return character if character.isprintable() and in_font else character.encode("unicode_escape").decode()
