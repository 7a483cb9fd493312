"""The command ``train``."""

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from minitransformer.command.console import SIGNALLED, check_text
from minitransformer.command.display import TerminalDisplay, find_program
from minitransformer.command.options import ChosenKernels, Data, Device, Kernels, Settings
from minitransformer.command.scoring import score_task, score_text
from minitransformer.errors import Stopped
from minitransformer.recipes import load_recipe
from minitransformer.recipes.resuming import load_resumed_recipe
from minitransformer.recipes.run import train_recipe
from minitransformer.system.folders import make_new_folder
from minitransformer.training.checkpoints import find_last_checkpoint


def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            callback=check_text,
            help="See `minitransformer recipes`; by default python.",
        ),
    ] = None,
    data: Data = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where to write the model; by default a new folder in runs/.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the last checkpoint in the folder, if there is one."),
    ] = False,
    device: Device = "cpu",
    settings: Settings = None,
    kernels: ChosenKernels = Kernels.FUSED,
):
    """Train a language model by a recipe."""
    runs = Path("runs") / (recipe or "python")
    if resume:
        folder = output_dir or _find_newest_folder(runs)
        chosen, data = load_resumed_recipe(recipe, folder, settings or (), data or [])
    else:
        chosen = load_recipe(recipe or "python", settings or ())
        folder = output_dir or context.with_resource(make_new_folder(runs))
    display = TerminalDisplay()
    if resume and find_last_checkpoint(folder) is None:
        display.say(f"there is no checkpoint in {folder}: starting from the beginning\n")
    started = time.perf_counter()
    try:
        model, material = train_recipe(chosen, folder, data or (), device, display, resume)
    except Stopped as stopped:
        display.say(
            "\nstopped before the first step: nothing was trained and nothing was written"
            if stopped.folder is None
            else f"\nstopped; {folder} holds the last checkpoint. To continue:\n"
            f"    {find_program()} train --resume --output-dir {shlex.quote(str(folder))}"
        )
        raise typer.Exit(SIGNALLED + stopped.signal) from None
    finally:
        display.end()
    if material.validation_text is None:
        score = score_task(model, material.tokenizer, material.validation)
    else:
        tokens = material.validation.tokens
        score = score_text(model, material.tokenizer, tokens, material.validation_text)
    options = ["--device", device] if device != "cpu" else []
    options += ["--kernels", str(kernels)] if kernels is not Kernels.FUSED else []
    seconds = time.perf_counter() - started
    display.done(chosen, folder, material, score, seconds, data or (), options)


def _find_newest_folder(wanted):
    """Return the last of ``wanted``, ``wanted-2``, … that exists, or else ``wanted``."""
    folder, number = wanted, 2
    while (following := wanted.with_name(f"{wanted.name}-{number}")).exists():
        folder, number = following, number + 1
    return folder
