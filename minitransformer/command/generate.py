"""The command ``generate``."""

import enum
from typing import Annotated

import typer

from minitransformer.command.console import check_text, check_texts
from minitransformer.command.loading import load_trained
from minitransformer.command.options import ChosenKernels, Device, Folder, Kernels
from minitransformer.command.writing import Writer, read_generation_settings
from minitransformer.generation.sampling import prepare_decoding


class Weights(enum.StrEnum):
    """The types that weights are read in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


def generate(
    folder: Folder,
    prompt: Annotated[str, typer.Option(callback=check_text, help="The text to continue.")] = "",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="The most tokens to generate; by default 500, or the length of the task's answer."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Divides the logits: below 1 makes likely tokens likelier, above 1 less likely; 0 always "
            "takes the likeliest. By default 0.8, for a task 0."
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample only from the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample only from the fewest likeliest tokens whose probabilities sum to p."),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", callback=check_texts, help="End before this text; can be repeated."),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(metavar="N", help="How many texts to generate, with the seeds SEED, SEED + 1, …")
    ] = 1,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            help="Read prompts from standard input, one per line, and continue each in turn, each with the "
            "next seed. Ctrl-C ends a text, Ctrl-D the program.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed generates the same text.")] = 0,
    weights: Annotated[
        Weights,
        typer.Option(
            help="bfloat16 and int8 round the weights, and read them in a half or a quarter of the time: a "
            "large model writes faster, nearly the same."
        ),
    ] = Weights.FLOAT32,
    device: Device = "cpu",
    kernels: ChosenKernels = Kernels.FUSED,
):
    """Generate text with a trained model, printed token by token."""
    folder, model, tokenizer = load_trained(folder, device, "generate")
    defaults = read_generation_settings(folder)
    writer = Writer(
        prepare_decoding(model, weights),
        tokenizer,
        seed,
        num_samples,
        max_new_tokens=defaults["max_new_tokens"] if max_new_tokens is None else max_new_tokens,
        temperature=defaults["temperature"] if temperature is None else temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
    )
    if prompt or not interactive:
        writer.write(prompt)
    if interactive and not writer.answer_lines():
        raise typer.Exit(1)
