"""The command line: ``minitransformer train | generate | evaluate | …``; ``--help`` lists every command."""

from typing import Annotated

import typer

import minitransformer
from minitransformer.command.attention import attention
from minitransformer.command.console import run
from minitransformer.command.evaluate import evaluate
from minitransformer.command.generate import generate
from minitransformer.command.info import info
from minitransformer.command.positions import positions
from minitransformer.command.recipes import recipes
from minitransformer.command.train import train

COMMANDS = train, generate, evaluate, attention, positions, recipes, info  # in the order of --help

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A transformer to read, verify and race.",
)
for command in COMMANDS:
    app.command()(command)


def _show_version(wanted: bool):
    if wanted:
        print(f"minitransformer {minitransformer.__version__}")
        raise typer.Exit


@app.callback()
def version(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
):
    """Read, verify and race a transformer."""


def main():
    """Run the command line; errors meant for the user are one line on standard error."""
    run(app)
