"""The wheel: complete, and at work in a folder that knows nothing of this checkout."""

import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import ml_dtypes
import pytest
from packaging.requirements import Requirement
from safetensors.numpy import load_file, save_file

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
    done = subprocess.run([*pip, *built], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (
        f"no wheel (pip install -e '.[test]' brings the setuptools that builds it):\n{done.stderr}"
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder, {**os.environ, "PYTHONPATH": str(folder / "site")}


@pytest.fixture(scope="module")
def plain(installed):
    """An environment with the wheel and what it asks for, without any extra: links, so no index is needed."""
    folder, _ = installed
    venv.create(folder / "plain", symlinks=True, with_pip=False)
    (packages,) = (folder / "plain").glob("lib/python*/site-packages")
    for path in (folder / "site").iterdir():
        (packages / path.name).symlink_to(path)
    for distribution in required(folder / "site"):
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(distribution.locate_file(name))
    return folder / "plain" / "bin" / "python", folder


def required(site):
    """Return the distributions that the wheel unpacked in ``site`` needs, and those that they need."""
    (described,) = site.glob("*.dist-info")
    found, waiting = {}, list(metadata.Distribution.at(described).requires)
    while waiting:
        needed = Requirement(waiting.pop())
        if needed.name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            found[needed.name] = metadata.distribution(needed.name)
            waiting += found[needed.name].requires or []
    return found.values()


def run_plain(arguments, plain):
    python, folder = plain
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return printed([str(python), *arguments], folder, environment)


def printed(command, folder, environment):
    """Run ``command`` in ``folder``; return what it prints, once it has ended well."""
    settings = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, timeout=120, check=False, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def source_modules():
    """The modules of the checkout, by the names that setup.cfg gives to their folders."""
    for path in [*(ROOT / "minitransformer").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] == "kernels":
            parts = "minitransformer", *parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run(arguments, installed):
    return printed([sys.executable, *arguments], *installed)


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


ABSENT = """
import importlib.util
print([name for name in {names} if importlib.util.find_spec(name)])
"""


def test_the_plain_install_imports_everything(plain):
    names = [*extra_modules(), "hypothesis", "transformers"]
    assert run_plain(["-c", ABSENT.format(names=names)], plain).strip() == "[]"
    file, names = json.loads(run_plain(["-c", EVERY_MODULE], plain))
    assert Path(file).resolve().is_relative_to(plain[1])
    assert {"minitransformer", *names} == set(source_modules())


def extra_modules():
    """Return the names of what only extras bring and can be imported by the name of its distribution."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = "\n".join(config["options.extras_require"].values()).split("\n")
    return [Requirement(line).name for line in lines if line.strip()]


def test_the_plain_install_is_enough(plain):
    """Also for a file of bfloat16, a type that NumPy does not have."""
    (plain[1] / "text.txt").write_text("to be or not to be\n" * 60)
    settings = ["context_length=8", "width=8", "heads=1", "layers=1", "max_steps=3", "tokenizer=bpe"]
    command = ["-m", "minitransformer"]
    run_plain(
        [*command, *("train", "shakespeare", "--data", "text.txt", "--output-dir", "plain-model")]
        + [part for setting in [*settings, "vocabulary_size=260"] for part in ("--set", setting)],
        plain,
    )
    weights = plain[1] / "plain-model" / "model.safetensors"
    before = json.loads(run_plain([*command, "evaluate", "plain-model"], plain))
    cast = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in load_file(weights).items()}
    save_file(cast, weights)
    after = json.loads(run_plain([*command, "evaluate", "plain-model"], plain))
    assert after["val_loss"] == pytest.approx(before["val_loss"], rel=1e-2)
    greedy = ["--temperature", "0", "--max-new-tokens", "5"]
    assert run_plain([*command, "generate", "plain-model", "--prompt", "to", *greedy], plain).startswith("to")


def test_nothing_is_imported_that_is_not_required():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split("\n")
    allowed = {Requirement(line).name for line in lines if line.strip()}
    allowed |= {"minitransformer", "llvmlite", *sys.stdlib_module_names}  # numba requires the second
    for path in [*(ROOT / "minitransformer").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module.split(".")[0]}
            else:
                continue
            assert names <= allowed, path


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
