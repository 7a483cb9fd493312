"""Figures, drawn without a display; the user's settings of matplotlib do not affect them."""

import contextlib
import logging
import os
import sys
from pathlib import Path

import numpy as np

from minitransformer.arrays import array_module, to_numpy
from minitransformer.dispatch import inference
from minitransformer.errors import InputError
from minitransformer.system.cache import has_home, make_cache_folder
from minitransformer.system.files import write_atomically

FORMATS = ("png", "pdf", "svg", "jpg", "webp")

# of different luminance too, for the colour-blind
TRAIN_COLOUR, VALIDATION_COLOUR, OTHER_COLOUR = "#9ab8d6", "#d1495b", "#5c6b73"
SIGNED_COLOURS = "RdBu_r"  # white is 0; the colour-blind can distinguish the ends
DOTS = 150  # per inch, in figures of many small cells


@contextlib.contextmanager
def prepare_drawing():
    """Within this block, or the function that it decorates, matplotlib is loaded with its default settings.

    User settings (a style, fonts, LaTeX) do not affect the figure, and are restored afterwards. Raises
    InputError where matplotlib can't be loaded.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it logs where it caches fonts
    try:
        with _default_settings():
            yield
    finally:
        logger.setLevel(level)


def _default_settings():
    try:
        _load_matplotlib()
        from matplotlib import figure, style  # noqa: F401, PLC0415  slow to import; most commands don't draw

        return style.context("default")
    except Exception as error:  # of whatever type: an import can fail in many ways
        reason = " ".join(str(error).split())
        raise InputError(f"no picture can be drawn: matplotlib cannot be loaded ({reason})") from error


def _load_matplotlib():
    """Import matplotlib, whatever backend MPLBACKEND names.

    A notebook's is inherited by the commands that it runs, and importing matplotlib fails where that is not
    installed. Nothing here needs a backend; other figures of this process still use the one named.
    Without a home folder old versions need MPLCONFIGDIR to store settings and fonts.
    """
    if not has_home():
        os.environ.setdefault("MPLCONFIGDIR", str(make_cache_folder("matplotlib")))
    loaded, name = "matplotlib" in sys.modules, os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: PLC0415
    finally:
        if name is not None:
            os.environ["MPLBACKEND"] = name
    if name and not loaded:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = name


@prepare_drawing()
def plot_training(history, path):
    """Draw the losses, learning rates and gradient norms of ``history``, the lines of the metrics."""
    from matplotlib.figure import Figure  # noqa: PLC0415  slow to import, and most commands draw nothing

    figure = Figure(figsize=(7, 7), layout="constrained")
    losses, rates, norms = figure.subplots(3, sharex=True, height_ratios=(3, 1, 1))
    for name, colour, style in (
        ("train_loss", TRAIN_COLOUR, "-"),
        ("val_loss", VALIDATION_COLOUR, "o-"),
    ):
        points = _select_points(history, name)
        if points:
            label = f"{name.removesuffix('_loss').replace('val', 'validation')}, last {points[-1][1]:.3f}"
            losses.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4)
            losses.legend(frameon=False)
    for axes, name in ((rates, "learning_rate"), (norms, "gradient_norm")):
        points = _select_points(history, name)
        if points:
            axes.plot(*zip(*points, strict=True), color=OTHER_COLOUR)
            axes.set_ylim(bottom=0)
        axes.set_ylabel(name.replace("_", " "))
    losses.set_ylabel("loss (nats per token)")
    norms.set_xlabel("step")
    for axes in (losses, rates, norms):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    _write(figure, path, dpi=120, format="png")


def compute_position_table(model):
    """Return what ``model`` adds to the embeddings for each position, (P, D), on the host, in its type.

    Learned or sinusoidal, it is the output of the model's own layer for zeros.
    """
    xp, dtype = array_module(model.flat.values), model.flat.values.dtype
    count, width = model.config.context_length, model.config.width
    with inference():
        rows, _ = model.positions(xp.zeros((1, count, width), dtype), xp.arange(count))
    return to_numpy(rows)[0]


@prepare_drawing()
def plot_positions(table, path, title="positions"):
    """Draw ``table`` (P, D), one row per position, and the cosine similarities of its rows (P, P).

    The ending of ``path`` (.png, .pdf, .svg, …) says in which format. Raises InputError for another ending
    and for a file that can't be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  slow to import, and most commands draw nothing

    check_picture(path)
    count, width = table.shape
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    left, right = figure.subplots(1, 2)
    _draw_signed(left, table, np.abs(table).max(), "value")
    _draw_signed(right, compute_cosine_similarities(table), 1, "cosine similarity")
    left.set(title=f"{title}, {count} × {width}", xlabel="component", ylabel="position")
    right.set(title="similarity of positions", xlabel="position", ylabel="position")
    save_picture(figure, path)


def compute_cosine_similarities(table):
    """Return the cosines of the angles between the rows of ``table`` (P, D), (P, P); 0 for rows of zeros."""
    norms = np.sqrt(np.square(table).sum(axis=1, keepdims=True))
    directions = table / np.where(norms == 0, 1, norms)
    return directions @ directions.T


def check_picture(path):
    """Raise InputError unless the ending of ``path`` names a format of pictures."""
    if Path(path).suffix.lower().removeprefix(".") not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(f"a picture cannot be written to {path}; expected a name that ends in {endings}")


def save_picture(figure, path):
    """Write ``figure`` to ``path`` atomically, in the format of its ending."""
    ending = Path(path).suffix.lower().removeprefix(".")
    _write(figure, path, dpi=DOTS, format=ending, bbox_inches="tight")


def _write(figure, path, **settings):
    try:
        with write_atomically(path) as temporary:
            figure.savefig(temporary, **settings)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    except Exception as error:  # of a font, of a library that is missing
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be drawn: {reason}") from error


def _draw_signed(axes, values, largest, name):
    image = axes.imshow(values, cmap=SIGNED_COLOURS, vmin=-largest, vmax=largest, aspect="auto")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.figure.colorbar(image, ax=axes, label=name)


def _select_points(history, name):
    return [(line["step"], line[name]) for line in history if line[name] is not None]
