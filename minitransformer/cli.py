"""The command line: ``minitransformer train | generate | evaluate | recipes | info``."""

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers.decoders import DecodeStream

from minitransformer.checkpoint import load_model
from minitransformer.corpus import CORPUS, judged_text
from minitransformer.display import TerminalDisplay
from minitransformer.errors import DeviceError, DivergedError, InputError
from minitransformer.evaluation import evaluate as evaluate_text
from minitransformer.generation import generate as generate_ids
from minitransformer.info import information
from minitransformer.memory import peak_memory, reuse_freed_memory
from minitransformer.recipes import load_recipe, recipe_names
from minitransformer.run import LOSS_PICTURE, METRICS, start_id, train_recipe
from minitransformer.tokenizer import TOKENIZER, encode, load_tokenizer

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A transformer to read, verify and race.",
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a trained model.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="See `minitransformer recipes`.")
    ] = "python",
    data: Annotated[Path | None, typer.Option(help="A text file to learn from.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where to write the model; by default a new folder in runs/.")
    ] = None,
    device: Device = "cpu",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of the recipe; can be repeated."),
    ] = None,
):
    """Train a language model by a recipe."""
    chosen = load_recipe(recipe, settings or ())
    folder = output_dir or _free_folder(Path("runs") / recipe)
    display = TerminalDisplay()
    started = time.perf_counter()
    try:
        model, tokenizer, corpus, finished = train_recipe(chosen, folder, data, device, display)
    finally:
        display.end()
    if not finished:
        display.say(f"\nstopped; {folder} holds the model as it is")
        raise typer.Exit(INTERRUPTED)
    with _progress("evaluating") as advance:
        score = evaluate_text(model, tokenizer, corpus.validation, advance)
    minutes = (time.perf_counter() - started) / 60
    memory = peak_memory()
    display.say(
        f"\nDone in {minutes:.1f} minutes"
        + (f", with at most {memory / 1e9:.2f} GB of memory" if memory else "")
        + f". On {score['bytes']:,} bytes of text that it never saw, the model needs "
        f"{score['bits_per_byte']:.3f} bits a byte (loss {score['val_loss']:.4f}); "
        f"xz -9 needs {score['xz_bits_per_byte']:.3f}."
    )
    name, command = shlex.quote(str(folder)), _command()
    more = f" --data {shlex.quote(str(data))}" if data else ""
    display.say(
        f"\n{folder} holds the model (config.json, model.safetensors, tokenizer.json), "
        f"{METRICS}, {LOSS_PICTURE} and {CORPUS}. Try next:\n"
        f"    {command} generate {name} --prompt {shlex.quote(_prompt_to_try(corpus))}\n"
        f"    {command} evaluate {name}\n"
        f"    {command} train {recipe}{more} --set width=192 --set max_steps={2 * chosen.training.max_steps}"
    )


@app.command()
def generate(
    folder: Folder,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="How much to write.")] = 500,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of mass p.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    device: Device = "cpu",
):
    """Write text with a trained model, as it is drawn."""
    model, tokenizer = _load(folder, device)
    ids = encode(tokenizer, prompt).tolist() if prompt else [start_id(tokenizer)]
    stream = DecodeStream(skip_special_tokens=False)
    tokens = generate_ids(
        model, ids, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    sys.stdout.write(prompt)
    for token in tokens:
        sys.stdout.write(stream.step(tokenizer, token) or "")
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def evaluate(
    folder: Folder,
    data: Annotated[
        Path | None,
        typer.Option(help="A text file; of the one trained on, only the validation part is used."),
    ] = None,
    device: Device = "cpu",
):
    """Print how well a trained model predicts a text, as a JSON object."""
    model, tokenizer = _load(folder, device)
    text, part = judged_text(folder, data)
    with _progress("evaluating") as advance:
        score = evaluate_text(model, tokenizer, text, advance)
    print(json.dumps({**score, "text": part}, indent=2))


@app.command()
def recipes():
    """List the recipes."""
    for name in recipe_names():
        print(f"{name:<14}{load_recipe(name).description}")


@app.command()
def info():
    """Show versions, processors and what is accelerated."""
    for name, value in information().items():
        print(f"{name:<17}{value}")


def main():
    """Run the command line; an error that concerns the user is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, DeviceError, DivergedError, OSError) as error:
        print(f"minitransformer: error: {error}", file=sys.stderr)
        sys.exit(1)
    except MemoryError as error:
        print(f"minitransformer: error: not enough memory: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _free_folder(wanted):
    """Return ``wanted``, or the first of ``wanted-2``, ``wanted-3``, … that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _load(folder, device):
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    reuse_freed_memory()
    model = load_model(folder, device=device)
    tokenizer = load_tokenizer(folder)
    if tokenizer.get_vocab_size() != model.config.vocabulary_size:
        raise InputError(
            f"{folder / TOKENIZER} has {tokenizer.get_vocab_size()} tokens but the model "
            f"{model.config.vocabulary_size}; they do not belong together"
        )
    return model, tokenizer


def _prompt_to_try(corpus):
    """Return how a text of this kind might begin."""
    word = re.search(r"[^\W\d_]{3,}", corpus.validation)
    return "def " if corpus.source["corpus"] == "python" or word is None else word.group()


def _command():
    """Return this command as it can be typed here."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return "python -m minitransformer"
    return program.name if shutil.which(program.name) else str(program)


@contextlib.contextmanager
def _progress(task_name):
    """Show progress on standard error; yield what is called with how much is done, and of how much."""
    console = Console(stderr=True)
    columns = TextColumn(task_name), BarColumn(), TimeRemainingColumn()
    if not console.is_terminal:
        yield lambda done, total: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(task_name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
