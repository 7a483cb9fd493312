"""What the tutorials show besides numbers: source code, matrices, grids of tokens and plots.

    draw(("dy", dy), "×", ("Wᵀ", weight.T), "=", ("dx", dx))
    show_code(linear, linear_backward)
    show(figure)

Importing it sets Matplotlib's defaults: no spines at the top and on the right, legends without frames.
"""

import inspect
import io
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from IPython.display import Image, Markdown, display

BLUE, PURPLE, ORANGE, GREY = "#3182bd", "#8073ac", "#e08214", "#999999"
DARK, MUTED, PALE = "#222222", "#777777", "#aaaaaa"
CHARACTER = 0.078  # inches that a character of a title or a name takes

plt.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "legend.frameon": False,
}


def show_code(*functions):
    """Show the source of ``functions`` as it stands in the library."""
    source = "\n\n".join(textwrap.dedent(inspect.getsource(function)) for function in functions)
    display(Markdown(f"```python\n{source}```"))


def show(figure):
    """Show ``figure`` and close it: at twice the resolution of the screen, in 64 colours, in few bytes."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=160, format="png")
    plt.close(figure)
    picture = PIL.Image.open(drawn).convert("RGB").quantize(64)
    picture.save(packed, "png", optimize=True)
    display(Image(packed.getvalue(), width=picture.width // 2))


def draw(*parts, cell=(0.6, 0.36), limit=None):
    """Draw matrices side by side in cells of one size, and strings such as "×" between them.

    A matrix is ``(title, values)`` and, if wanted, row names, column names, and what rows and columns stand
    for. Booleans, and matrices whose title starts with "weights", go from white (0) to blue (1). All others
    are purple where positive and orange where negative, each on a scale of its own, or up to ``limit``. NaN
    stands for what is masked. ``cell`` is the width and height of an entry in inches.
    """
    parts = [part if isinstance(part, str) else _matrix(*part) for part in parts]
    places, x, above, below = [], 0.1, 0.0, 0.0
    for part in parts:  # the left end of each in inches, and what all need above and below the middle line
        if isinstance(part, str):
            places.append(x + 0.16)
            x += 0.32
            continue
        title, values, rows, columns, axes = part
        height, width = values.shape[0] * cell[1], values.shape[1] * cell[0]
        longest = max(map(len, columns), default=0)
        x += max(map(len, rows), default=0) * CHARACTER + 0.12 + (0.24 if axes else 0)
        places.append(x)
        lines = title.replace("$", "").replace("\\hat{x}", "x").split("\n")
        x += max(width, max(map(len, lines)) * CHARACTER) + 0.12
        above = max(above, height / 2 + 0.12 + 0.19 * len(lines))
        names = longest * CHARACTER if _upright(columns, cell) else 0.15 if columns else 0
        below = max(below, height / 2 + 0.12 + names + (0.2 if axes else 0))
    size = x, above + below
    figure = plt.figure(figsize=size)
    for part, left in zip(parts, places, strict=True):
        if isinstance(part, str):
            figure.text(left / size[0], below / size[1], part, ha="center", va="center", fontsize=15)
            continue
        height, width = part[1].shape[0] * cell[1], part[1].shape[1] * cell[0]
        corner = left / size[0], (below - height / 2) / size[1]
        axes = figure.add_axes((*corner, width / size[0], height / size[1]))
        _draw_matrix(axes, *part, _upright(part[3], cell), limit)
    show(figure)


def _matrix(title, values, rows=(), columns=(), *axes):
    return title, np.asarray(values), list(rows), list(columns), axes


def _upright(columns, cell):
    """Return whether the names of ``columns`` are too long to stand side by side."""
    return max(map(len, columns), default=0) * 0.085 > cell[0]


def _draw_matrix(axes, title, values, rows, columns, names, upright, limit):
    blue = title.startswith("weights") or values.dtype == bool
    values = values.astype(float)
    finite = values[np.isfinite(values)]
    largest = 1.0 if blue else limit or max(np.abs(finite).max(initial=0.0), 1e-9)
    axes.imshow(
        np.where(np.isfinite(values), values, np.nan),
        cmap=plt.get_cmap("Blues" if blue else "PuOr").with_extremes(bad="#d8d8d8"),
        vmin=0 if blue else -1.35 * largest,
        vmax=1.35 * largest,
        aspect="auto",
    )
    digits = 0 if np.array_equal(finite, np.round(finite)) else 3 if largest < 0.1 else 2
    for (i, j), value in np.ndenumerate(values):
        text = _entry(value, digits, largest)
        colour = PALE if text in ("0", "≈ 0") else "white" if 0.75 * largest < abs(value) < np.inf else DARK
        axes.text(j, i, text, ha="center", va="center_baseline", fontsize=9.5, color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=90 if upright else 0, fontsize=9.5)
    axes.set_yticks(range(len(rows)), rows, fontsize=9.5)
    _draw_cells(axes, values.shape, "white", 1.5)
    axes.set_title(title, fontsize=10, pad=5)
    if names:
        axes.set_ylabel(names[0], fontsize=9, color=MUTED, labelpad=4)
        axes.set_xlabel(names[1], fontsize=9, color=MUTED, labelpad=2)


def _entry(value, digits, largest):
    """Return ``value`` as a cell shows it: nothing for NaN, 0 up to rounding, ≈ 0 where no digit is left."""
    if np.isnan(value):
        return ""
    if abs(value) < 1e-12 * largest:
        return "0"
    text = f"{value:.{digits}f}".replace("-inf", "−∞").replace("-", "−")
    return text if text.strip("−0.") else "≈ 0"


def _draw_cells(axes, shape, colour, linewidth):
    """Draw the lines between the cells of an image of ``shape``, and a frame around it, without ticks."""
    axes.set_xticks(np.arange(0.5, shape[1] - 1), minor=True)
    axes.set_yticks(np.arange(0.5, shape[0] - 1), minor=True)
    axes.grid(which="minor", color=colour, linewidth=linewidth)
    axes.tick_params(which="both", length=0, pad=4)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(GREY)


def draw_tokens(tokenizer, *panels):
    """Draw grids of tokens side by side, each ``(title, ids, colouring)``: the character, its id below."""
    count = sum(ids.shape[1] for _, ids, _ in panels)
    size = (0.36 * (count + 2 * len(panels)), 0.46 * len(panels[0][1]) + 0.45)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained")
    for axis, (title, ids, colouring) in zip(axes, panels, strict=True):
        axis.imshow(colouring, cmap="Blues", vmin=0, vmax=1.9, aspect="auto")
        for (i, j), index in np.ndenumerate(ids):
            character = "–" if index < 0 else tokenizer.decode([index]).replace(" ", "␣")
            axis.text(j, i - 0.12, character, ha="center", va="center", fontsize=12)
            axis.text(j, i + 0.32, index, ha="center", va="center", fontsize=7, color=MUTED)
        axis.set(xticks=(), yticks=())
        _draw_cells(axis, ids.shape, "#cccccc", 0.8)
        axis.set_title(title, fontsize=10)
    show(figure)
