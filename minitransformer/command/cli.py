"""The command line: ``minitransformer train | generate | evaluate | …``; ``--help`` names every command."""

import enum
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import minitransformer
from minitransformer.command.console import SIGNALLED, check_text, check_texts, run
from minitransformer.command.display import TerminalDisplay, describe_recipe, find_program
from minitransformer.command.info import collect_facts
from minitransformer.command.writing import Writer, read_generation_settings
from minitransformer.data.text import Text
from minitransformer.data.token_file import token_file
from minitransformer.data.tokenizer import TOKENIZER, encode, id_count, load_tokenizer
from minitransformer.dispatch import reference
from minitransformer.errors import InputError, Stopped
from minitransformer.evaluation.scores import evaluate_task, evaluate_text
from minitransformer.evaluation.validation import load_validation
from minitransformer.inspection.attention_maps import attention_maps, left_out, plot_attention, token_labels
from minitransformer.inspection.plots import FORMATS, plot_positions, position_table
from minitransformer.pretrained.model_folder import load_model
from minitransformer.recipes import load_recipe, recipe_names
from minitransformer.recipes.cost import BUSY, estimate_cost
from minitransformer.recipes.resuming import resumed_recipe
from minitransformer.recipes.run import train_recipe
from minitransformer.system.folders import make_new_folder
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.system.progress import show_progress
from minitransformer.system.terminal import fit_lines, format_duration_range
from minitransformer.training.checkpoints import last_checkpoint, model_folder

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A transformer to read, verify and race.",
)


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


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a trained model.")]
Device = Annotated[str, typer.Option(callback=check_text, help="cpu or cuda.")]


class Kernels(enum.StrEnum):
    """What computes an operation that has a kernel."""

    FUSED = "fused"
    REFERENCE = "reference"


def _choose_kernels(context: typer.Context, kernels: Kernels):
    if kernels is Kernels.REFERENCE:
        context.with_resource(reference())
    return kernels


ChosenKernels = Annotated[
    Kernels,
    typer.Option(
        "--kernels", callback=_choose_kernels, help="reference: only the definitions, slower and readable."
    ),
]
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


@app.command()
def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            callback=check_text,
            help="See `minitransformer recipes`; by default python.",
        ),
    ] = None,
    data: Data = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where to write the model; by default a new folder in runs/.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder, if there is one.")
    ] = False,
    device: Device = "cpu",
    settings: Settings = None,
    kernels: ChosenKernels = Kernels.FUSED,
):
    """Train a language model by a recipe."""
    runs = Path("runs") / (recipe or "python")
    if resume:
        folder = output_dir or _newest_folder(runs)
        chosen, data = resumed_recipe(recipe, folder, settings or (), data or [])
    else:
        chosen = load_recipe(recipe or "python", settings or ())
        folder = output_dir or context.with_resource(make_new_folder(runs))
    display = TerminalDisplay()
    if resume and last_checkpoint(folder) is None:
        display.say(f"there is no checkpoint in {folder}: starting from the beginning\n")
    started = time.perf_counter()
    try:
        model, material = train_recipe(chosen, folder, data or (), device, display, resume)
    except Stopped as stopped:
        display.say(
            "\nstopped before the first step: nothing was trained, and nothing is left behind"
            if stopped.folder is None
            else f"\nstopped; {folder} holds the last checkpoint. To go on:\n"
            f"    {find_program()} train --resume --output-dir {shlex.quote(str(folder))}"
        )
        raise typer.Exit(SIGNALLED + stopped.signal) from None
    finally:
        display.end()
    if material.validation_text is None:
        score = _score_task(model, material.tokenizer, material.validation)
    else:
        tokens = material.validation.tokens
        score = _score_text(model, material.tokenizer, tokens, material.validation_text)
    options = ["--device", device] if device != "cpu" else []
    options += ["--kernels", str(kernels)] if kernels is not Kernels.FUSED else []
    seconds = time.perf_counter() - started
    display.done(chosen, folder, material, score, seconds, data or (), options)


@app.command()
def generate(
    folder: Folder,
    prompt: Annotated[str, typer.Option(callback=check_text, help="The text to continue.")] = "",
    max_new_tokens: Annotated[
        int | None, typer.Option(help="How much to write; by default 500, or what the model was made for.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0: always the likeliest token; by default 0.8.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of mass p.")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            callback=check_texts,
            help="End before this text, were it to come; can be repeated.",
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(metavar="N", help="How many texts to write, with the seeds SEED, SEED + 1, …")
    ] = 1,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            help="Read prompts from standard input, a line each, and continue them one by one, each with the "
            "next seed. Ctrl-C ends a text, Ctrl-D the program.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    device: Device = "cpu",
    kernels: ChosenKernels = Kernels.FUSED,
):
    """Write text with a trained model, as it is drawn."""
    folder, model, tokenizer = _load(folder, device)
    usual = read_generation_settings(folder)
    writer = Writer(
        model,
        tokenizer,
        seed,
        num_samples,
        max_new_tokens=usual["max_new_tokens"] if max_new_tokens is None else max_new_tokens,
        temperature=usual["temperature"] if temperature is None else temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
    )
    if prompt or not interactive:
        writer.write(prompt)
    if interactive and not writer.answer_lines():
        raise typer.Exit(1)


@app.command()
def evaluate(
    folder: Folder, data: Data = None, device: Device = "cpu", kernels: ChosenKernels = Kernels.FUSED
):
    """Print how well a trained model does, as a JSON object: on the validation part of what it was trained
    on, or on other text."""
    folder, model, tokenizer = _load(folder, device)
    source, part = load_validation(folder, data or ())
    if not isinstance(source, Text):
        print(json.dumps(_score_task(model, tokenizer, source), indent=2))
        return
    with show_progress("making tokens", Console(stderr=True)) as advance:
        tokens = token_file(source, tokenizer, advance)
    print(json.dumps({**_score_text(model, tokenizer, tokens, source), "text": part}, indent=2))


@app.command()
def attention(
    folder: Folder,
    text: Annotated[str, typer.Option(callback=check_text, help="What the model reads.")],
    layer: Annotated[int | None, typer.Option(help="Only this layer, counted from 0.")] = None,
    head: Annotated[int | None, typer.Option(help="Only this head, counted from 0.")] = None,
    output: Output = Path("attention.png"),
    device: Device = "cpu",
):
    """Draw which tokens of a text each head of a trained model looks at."""
    folder, model, tokenizer = _load(folder, device)
    ids = encode(tokenizer, text)
    maps = attention_maps(model, ids)
    plot_attention(maps, token_labels(tokenizer, ids), output, layer=layer, head=head)
    print(f"{output} shows where each of {len(ids)} tokens looks")
    print(left_out(maps.shape[:2], len(ids), layer=layer, head=head), end="")


@app.command()
def positions(folder: Folder, output: Output = Path("positions.png")):
    """Draw how a trained model encodes positions, and how alike they are."""
    _, model, _ = _load(folder, "cpu")
    table = position_table(model)
    plot_positions(table, output, f"{model.config.positions} positions")
    print(f"{output} shows the {model.config.positions} encoding of {len(table)} positions")


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", callback=check_text, help="Show this one and its cost."),
    ] = None,
    data: Data = None,
    settings: Settings = None,
    kernels: ChosenKernels = Kernels.FUSED,
):
    """List the recipes, or show one with what it would cost on this machine."""
    if name is None:
        width = 2 + max(map(len, recipe_names()))
        for each in recipe_names():
            _say(f"{each:<{width}}{load_recipe(each).description}", width)
        return
    recipe = load_recipe(name, settings or ())
    _say(f"{describe_recipe(recipe, data)}\n")
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


@app.command()
def info():
    """Show versions, processors and what is accelerated."""
    for name, value in collect_facts().items():
        _say(f"{name:<19}{value}", 19)


def main():
    """Run the command line; an error that concerns the user is one line on standard error."""
    run(app)


def _newest_folder(wanted):
    """Return the last of ``wanted``, ``wanted-2``, … that exists, or else ``wanted``."""
    folder, number = wanted, 2
    while (following := wanted.with_name(f"{wanted.name}-{number}")).exists():
        folder, number = following, number + 1
    return folder


def _load(folder, device):
    """Return the folder of a model (of an unfinished run, its last checkpoint), the model, its tokenizer."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    reuse_freed_memory()
    given, folder = folder, model_folder(folder)
    if folder != given:
        print(f"(the run in {given} has not ended: this is its {folder.name})", file=sys.stderr)
    model = load_model(folder, device=device)
    tokenizer = load_tokenizer(folder)
    if id_count(tokenizer) > model.config.vocabulary_size:  # more rows than tokens: padded for speed
        raise InputError(
            f"{folder / TOKENIZER} has {id_count(tokenizer)} tokens but the model only "
            f"{model.config.vocabulary_size}; they do not belong together"
        )
    return folder, model, tokenizer


def _score_task(model, tokenizer, examples):
    with show_progress("evaluating", Console(stderr=True)) as advance:
        return evaluate_task(model, examples, advance, id_count(tokenizer))


def _score_text(model, tokenizer, tokens, text):
    with show_progress("evaluating", Console(stderr=True)) as advance:
        return evaluate_text(model, tokenizer, tokens, text, advance)


def _print_cost(cost, without_text):
    """Print ``cost`` in words."""
    assumed = " (for a text like tinyshakespeare; give yours with --data)" if without_text else ""
    _say(f"On this machine{assumed}:")
    for name, value in (
        ("parameters", f"{cost.parameters:,}"),
        ("training", f"{cost.steps:,} steps, {cost.tokens:,} tokens"),
        ("operations", f"{cost.flops:.2e} FLOPs"),
        ("memory", f"{cost.memory / 1e9:.2f} GB"),
        ("time", format_duration_range(*cost.seconds)),
    ):
        print(f"{name:<12}{value}")
    if cost.free < BUSY:
        _say(
            f"\nThis machine is busy: a thread got {cost.free:.0%} of a processor. The time is what a free "
            "machine takes, reckoned from the processor time of one thread; beside other work it is longer."
        )


def _say(text, indent=0):
    """Print ``text``, on a terminal in lines that fit it."""
    print(fit_lines(text, Console(), indent))
