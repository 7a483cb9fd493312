"""Arguments and options that several commands have."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from minitransformer.command.console import check_text, check_texts
from minitransformer.dispatch import reference
from minitransformer.inspection.plots import FORMATS

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a trained model.")]
Device = Annotated[str, typer.Option(callback=check_text, help="cpu or cuda.")]
Output = Annotated[Path, typer.Option(help=f"The picture to write; one of .{', .'.join(FORMATS)}.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        callback=check_texts,
        help="Change a setting of the recipe; can be repeated.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH", help="A text file, a folder, or a pattern like 'books/*.txt'; can be repeated."
    ),
]


class Kernels(enum.StrEnum):
    """The implementations of an operation that has a kernel."""

    FUSED = "fused"
    REFERENCE = "reference"


def _choose_kernels(context: typer.Context, kernels: Kernels):
    if kernels is Kernels.REFERENCE:
        context.with_resource(reference())
    return kernels


ChosenKernels = Annotated[
    Kernels,
    typer.Option(
        "--kernels",
        callback=_choose_kernels,
        help="reference: compute everything by the definitions, which are slower but readable.",
    ),
]
