"""The wheel: complete, and at work in a folder that knows nothing of this checkout."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVERY_MODULE = """
import importlib, json, pkgutil, minitransformer
names = [m.name for m in pkgutil.walk_packages(minitransformer.__path__, "minitransformer.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(json.dumps([minitransformer.__file__, names]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel unpacked, and the environment in which Python finds it there first."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files behind, which a later one would pack
    for name in ("minitransformer", "kernels"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    built = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *built], check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder, {**os.environ, "PYTHONPATH": str(folder / "site")}


def source_modules():
    """The modules of the checkout, by the names that setup.cfg gives to their folders."""
    for path in [*(ROOT / "minitransformer").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] == "kernels":
            parts = "minitransformer", *parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run(arguments, installed):
    folder, environment = installed
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


def test_the_wheel_holds_every_module(installed):
    file, names = json.loads(run(["-c", EVERY_MODULE], installed))
    assert Path(file).is_relative_to(installed[0])
    assert {"minitransformer", *names} == set(source_modules())


def test_the_wheel_trains_and_generates(installed):
    (installed[0] / "text.txt").write_text("to be or not to be\n" * 30)
    settings = ["context_length=8", "width=8", "heads=1", "layers=1", "max_steps=3"]
    run(
        ["-m", "minitransformer", "train", "shakespeare", "--data", "text.txt", "--output-dir", "model"]
        + [part for setting in settings for part in ("--set", setting)],
        installed,
    )
    written = run(["-m", "minitransformer", "generate", "model", "--max-new-tokens", "5"], installed)
    assert len(written) == 6


def test_nothing_is_installed_beside_the_package(installed):
    """Above all no top-level ``kernels``: another project's package has that name."""
    top = {path.name for path in (installed[0] / "site").iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"minitransformer"}


def test_every_dependency_has_a_lower_bound():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split("\n")
    for extra in config["options.extras_require"].values():
        lines += extra.split("\n")
    assert all(">=" in line for line in lines if line.strip())


def test_the_lower_bounds_are_those_that_are_tried():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = config["options"]["install_requires"] + "\n" + config["options.extras_require"]["test"]
    bounds = dict(line.split(" >= ") for line in needed.split("\n") if line.strip())
    tried = dict(line.split("==") for line in (ROOT / ".ci" / "lower-bounds.txt").read_text().splitlines())
    assert bounds.keys() == tried.keys()
    for name, bound in bounds.items():
        assert f"{tried[name]}.0".startswith(f"{bound}."), name
