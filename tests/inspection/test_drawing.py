"""Drawing, whatever surrounds it: a backend that is missing, the user's settings, a broken matplotlib."""

import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bench.__main__ import check_files
from minitransformer.errors import DivergedError, InputError, Stopped
from minitransformer.inspection.plots import plot_positions, prepare_drawing
from minitransformer.recipes import load_recipe, run
from minitransformer.recipes.display import Display
from minitransformer.recipes.run import train_recipe
from minitransformer.system.file_names import PICTURE

TABLE = np.eye(4)
DRAW = """
import os, sys
import numpy as np
from minitransformer.inspection.plots import plot_positions
before = dict(os.environ)
plot_positions(np.eye(4), sys.argv[1])
import matplotlib
print(before == dict(os.environ), "matplotlib.pyplot" in sys.modules, matplotlib.rcParams._get("backend"))
"""


def python(code, *arguments, without=(), **environment):
    """Run ``code`` in a process of its own, ``without`` some environment variables."""
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("named", "kept"),
    [
        ("no such backend", None),
        ("module://nowhere.backend_inline", "module://nowhere.backend_inline"),
        ("tkagg", "tkagg"),
        ("", None),
    ],
)
def test_the_backend_that_is_named_does_not_matter_but_stays(tmp_path, named, kept):
    """It is the user's, who may draw with it in the same process, a notebook's kernel for one."""
    done = python(DRAW, tmp_path / "a.png", MPLBACKEND=named)
    assert done.returncode == 0, done.stderr
    same, pyplot, backend = done.stdout.strip().split(" ", 2)
    assert (same, pyplot) == ("True", "False")
    assert backend == kept or (kept is None and "object" in backend), (
        "matplotlib chooses one when asked for it"
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_backend_chosen_before_stays(tmp_path):
    chosen = "import matplotlib; matplotlib.rcParams['backend'] = 'svg'\n"
    done = python(chosen + DRAW, tmp_path / "a.png", MPLBACKEND="pdf")
    assert done.stdout == "True False svg\n", done.stderr


@pytest.mark.parametrize("home", ["file", None])
def test_matplotlib_says_nothing_of_where_it_keeps_its_fonts(tmp_path, home):
    (tmp_path / "file").touch()
    settings = {"MPLCONFIGDIR": str(tmp_path / "file")} if home is None else {"HOME": str(tmp_path / home)}
    without = "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"
    done = python(DRAW, tmp_path / "a.png", without=without, **settings)
    assert (done.returncode, done.stderr) == (0, "")


def test_settings_of_the_user_bend_no_picture_and_stay(tmp_path):
    import matplotlib

    plot_positions(TABLE, tmp_path / "ours.png")
    theirs = {"text.usetex": True, "font.family": ["no such font"], "axes.facecolor": "red"}
    with matplotlib.rc_context(theirs):
        plot_positions(TABLE, tmp_path / "theirs.png")
        assert {name: matplotlib.rcParams[name] for name in theirs} == theirs
    ours, others = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("ours", "theirs"))
    np.testing.assert_array_equal(ours, others)


def test_the_level_of_the_log_stays():
    logger = logging.getLogger("matplotlib")
    before = logger.level
    with prepare_drawing():
        assert logger.getEffectiveLevel() == logging.ERROR
    assert logger.level == before


BROKEN = [{"matplotlib": None}, {"matplotlib.figure": None}, {"matplotlib.style": None}]


@pytest.fixture(params=BROKEN, ids=[*map(str, BROKEN)])
def broken_matplotlib(request, monkeypatch):
    """Let matplotlib, or a part of it, be impossible to import."""
    import matplotlib

    monkeypatch.delattr(matplotlib, "figure", raising=False)
    monkeypatch.delattr(matplotlib, "style", raising=False)
    for name, value in request.param.items():
        monkeypatch.setitem(sys.modules, name, value)


def test_a_broken_matplotlib_is_told_in_a_line(tmp_path, broken_matplotlib):
    for draw in (plot_positions, lambda table, path: check_files(None, path)):
        with pytest.raises(InputError, match="no picture can be drawn: matplotlib cannot be loaded") as error:
            draw(TABLE, tmp_path / "a.png")
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_drawn_is_told_in_a_line(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def savefig(figure, file, **settings):
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(InputError, match=r"a\.png cannot be drawn: no font at all"):
        plot_positions(TABLE, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


# --- the picture of a run


def fail(history, path):
    raise RuntimeError("no fonts")


def recipe(**changes):
    settings = {"max_steps": 3, "layers": 1, "width": 16, "heads": 2, "logging_steps": 1} | changes
    return load_recipe("sort", [f"{name}={value}" for name, value in settings.items()])


def test_a_run_is_worth_more_than_its_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "plot_training", fail)
    with pytest.warns(RuntimeWarning, match="^training.png was not drawn: no fonts$"):
        model, _ = train_recipe(recipe(), tmp_path / "run")
    assert model.parameter_count() > 0
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / PICTURE).exists()


def test_where_no_picture_can_be_written(tmp_path):
    (tmp_path / "run" / PICTURE).mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="training.png was not drawn: .* cannot be written"):
        train_recipe(recipe(), tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").exists()


class Interrupted(Display):
    """Ctrl-C after the first step."""

    def on_step_end(self, trainer, done):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("display", "changes", "reason"),
    [
        (Interrupted(), {}, Stopped),
        (None, {"learning_rate": 1e30, "max_grad_norm": 0, "warmup_steps": 0, "optim": "sgd"}, DivergedError),
    ],
    ids=["stopped", "diverged"],
)
def test_a_failed_picture_does_not_hide_why_a_run_ended(tmp_path, monkeypatch, display, changes, reason):
    monkeypatch.setattr(run, "plot_training", fail)
    with (
        np.errstate(all="ignore"),
        pytest.warns(RuntimeWarning, match="training.png was not drawn: no fonts"),
        pytest.raises(reason),
    ):
        train_recipe(recipe(**changes), tmp_path / "run", display=display)
