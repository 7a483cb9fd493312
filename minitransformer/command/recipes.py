"""The command ``recipes``."""

import json
from typing import Annotated

import typer

from minitransformer.command.console import check_text, print_lines
from minitransformer.command.display import describe_recipe
from minitransformer.command.options import ChosenKernels, Data, Kernels, Settings
from minitransformer.recipes import list_recipes, load_recipe
from minitransformer.recipes.cost import BUSY, estimate_cost
from minitransformer.system.terminal import format_duration_range


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", callback=check_text, help="Show this one and its cost."),
    ] = None,
    data: Data = None,
    settings: Settings = None,
    kernels: ChosenKernels = Kernels.FUSED,
):
    """List the recipes, or show one with its cost on this machine."""
    if name is None:
        width = 2 + max(map(len, list_recipes()))
        for each in list_recipes():
            print_lines(f"{each:<{width}}{load_recipe(each).description}", width)
        return
    recipe = load_recipe(name, settings or ())
    print_lines(f"{describe_recipe(recipe, data)}\n")
    if recipe.pretrained is not None:
        print(f"It starts from the model in {recipe.pretrained.folder}.\n")
    table = recipe.table()
    for part in ("text", "model", "training"):
        print(f"[{part}]")
        for setting, value in table[part].items():
            if setting not in ("output_dir", "disable_tqdm"):
                print(f"{setting} = {json.dumps(value)}")
        print()
    _print_cost(estimate_cost(recipe, data or ()), recipe.corpus == "text" and not data)


def _print_cost(cost, without_text):
    assumed = " (for a text like tinyshakespeare; give yours with --data)" if without_text else ""
    print_lines(f"On this machine{assumed}:")
    for name, value in (
        ("parameters", f"{cost.parameters:,}"),
        ("training", f"{cost.steps:,} steps, {cost.tokens:,} tokens"),
        ("operations", f"{cost.flops:.2e} FLOPs"),
        ("memory", f"{cost.memory / 1e9:.2f} GB"),
        ("time", format_duration_range(*cost.seconds)),
    ):
        print(f"{name:<12}{value}")
    if cost.free < BUSY:
        print_lines(
            f"\nThis machine is busy: a thread got {cost.free:.0%} of a processor. The time is that of an "
            "idle machine, estimated from the processor time of one thread; beside other work it is longer."
        )
