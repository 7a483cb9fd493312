"""``python -m bench``: comparisons with peers; each prints its result and can write it as JSON."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.machine import machine
from minitransformer.files import write_json

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")]


@app.callback()
def describe():
    """Compare minitransformer with its peers."""


@app.command()
def parity(
    data: Annotated[Path, typer.Option(help="The text to learn, by custom tinyshakespeare.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="As in minitransformer train.")
    ] = None,
    json_file: JsonFile = None,
):
    """Train the shakespeare recipe here and in PyTorch, on the same batches from the same weights."""
    try:
        from bench.parity import parity as run_parity  # noqa: PLC0415  not everyone has PyTorch
    except ImportError as error:
        raise typer.BadParameter(
            f"this needs a peer to compare with: pip install '.[oracle]' ({error})"
        ) from None
    report([run_parity(data, settings or ())], json_file)


def report(results, json_file):
    """Print the results, and write them with the machine they were measured on."""
    print(json.dumps(results, indent=2))
    if json_file is not None:
        write_json(json_file, {"machine": machine(), "results": results})


app()
