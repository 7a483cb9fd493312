"""The names of the package itself: short, complete, and nothing is loaded before it is used."""

import json
import subprocess
import sys

import pytest

import minitransformer

ALONE = """
import json, sys
import minitransformer
names = dir(minitransformer)
loaded = [name for name in ("numpy", "numba", "tokenizers", "typer") if name in sys.modules]
check = minitransformer.gradcheck.check_layer
print(json.dumps([names, loaded, check.__name__, minitransformer.gradcheck.__name__]))
"""


def test_completion_shows_names_and_loads_nothing():
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    names, loaded, check, module = json.loads(done.stdout)
    assert set(minitransformer.__all__) | {"__version__"} == set(names)
    assert loaded == []
    assert (check, module) == ("check_layer", "minitransformer.gradcheck")


@pytest.mark.parametrize("name", minitransformer.__all__)
def test_every_name_is_there_and_named_in_the_docstring(name):
    assert getattr(minitransformer, name) is not None
    assert name in minitransformer.__doc__


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'Transformer'"):
        _ = minitransformer.Transformer
