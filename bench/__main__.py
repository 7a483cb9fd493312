"""``python -m bench``: comparisons with peers; each prints its result and can write it as JSON.

Without a command all run in their quick form (``bench.quick``).
"""

import functools
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from bench.contenders import TURNS, ContenderError
from bench.pictures import draw_memory_growth, draw_roofline
from bench.report import (
    describe_attention,
    format_sizes,
    format_threads,
    make_progress,
    print_busy,
    print_cross_entropy,
    print_means,
    print_memory,
    print_page_faults,
    print_table,
    write_results,
)
from bench.step import CASES, compare, describe_case
from minitransformer.errors import InputError
from minitransformer.inspection.plots import FORMATS, check_picture, prepare_drawing
from minitransformer.system.files import check_writable
from minitransformer.system.processors import list_processors

app = typer.Typer(add_completion=False, rich_markup_mode=None)
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help=f"Draw the result there; one of .{', .'.join(FORMATS)}."),
]


@app.callback(invoke_without_command=True)
def quick(context: typer.Context, json_file: JsonFile = None):
    """Compare minitransformer with its peers: all of it quickly, in under five minutes, or one COMMAND."""
    if context.invoked_subcommand is not None:
        if json_file is not None:
            raise InputError(f"give --json after {context.invoked_subcommand}")
        return
    require_torch()
    check_files(json_file)
    results, failures = run_quickly()
    if json_file is not None:
        write_results(json_file, results, failures=failures)
    if failures:
        raise typer.Exit(1)


@app.command()
def step(json_file: JsonFile = None):
    """Race a GPT's training step against PyTorch eager, on one core and on all."""
    require_torch()
    check_files(json_file)
    cores = list_processors()
    counts = sorted({1, len(cores)})
    races = [
        (
            f"{case.name} ({format_sizes(describe_case(case, count))}), {format_threads(count)}",
            functools.partial(compare, case, cores[:count]),
        )
        for case in CASES
        for count in counts
    ]
    results = run_races(races)
    print_page_faults(results)
    if json_file is not None:
        write_results(json_file, results)


@app.command()
def busy(json_file: JsonFile = None):
    """Race a small training step on a busy machine, beside other processes, against PyTorch eager."""
    require_torch()
    check_files(json_file)
    from bench import busy as benchmark  # noqa: PLC0415

    with make_progress() as bar:
        task = bar.add_task("busy", total=TURNS)
        results = benchmark.compare(CASES[0], list_processors(), advance=lambda: bar.advance(task))
    print_busy(results)
    if json_file is not None:
        write_results(json_file, results)


@app.command()
def cross_entropy(json_file: JsonFile = None):
    """Race a head with its loss, forward and backward, against PyTorch's; measure the memory of a call."""
    require_torch()
    check_files(json_file)
    from bench import cross_entropy as benchmark  # noqa: PLC0415

    cores = list_processors()
    case = benchmark.GPT2
    races = [
        (
            f"N={case.N}, V={case.V}, D={case.D}, {format_threads(count)}",
            functools.partial(benchmark.compare, case, cores[:count]),
        )
        for count in sorted({1, len(cores)})
    ]
    results = run_races(races, print_cross_entropy)
    if json_file is not None:
        write_results(json_file, results)


@app.command()
def attention(json_file: JsonFile = None, plot_file: PlotFile = None):
    """Race attention, forward and backward, against PyTorch's, on one core and on all. Takes half an hour."""
    require_torch()
    check_files(json_file, plot_file)
    from bench import attention as benchmark  # noqa: PLC0415

    cores = list_processors()
    counts = sorted({1, len(cores)})
    races = [
        (
            describe_attention(benchmark.describe_case(case, count)),
            functools.partial(benchmark.compare, case, cores[:count]),
        )
        for count in counts
        for case in benchmark.CASES
    ]
    bandwidths = {count: benchmark.measure_bandwidth(cores[:count]) for count in counts}
    results = [
        {**result, "ceiling_gigabytes_per_second": bandwidths[result["case"]["threads"]]}
        for result in run_races(races)
    ]
    means = benchmark.compute_means(results)
    print_means(means)
    if json_file is not None:
        write_results(json_file, results, means=means)
    if plot_file is not None:
        draw_roofline(results, plot_file)


@app.command()
def memory(json_file: JsonFile = None, plot_file: PlotFile = None):
    """Measure the memory of attention, forward and backward, as T grows, here and in PyTorch."""
    require_torch()
    check_files(json_file, plot_file)
    from bench import memory as benchmark  # noqa: PLC0415

    results = []
    with make_progress() as bar:
        for length in bar.track(benchmark.LENGTHS, description="memory"):
            results.append(benchmark.compare(length, list_processors()))
    slopes = benchmark.compute_slopes(results)
    print_memory(results, slopes)
    if json_file is not None:
        write_results(json_file, results, slopes=slopes)
    if plot_file is not None:
        draw_memory_growth(results, slopes, plot_file)


@app.command()
def decode(json_file: JsonFile = None):
    """Race the tokens of GPT-2's smallest shape against PyTorch and transformers. Takes some minutes."""
    require_torch()
    check_files(json_file)
    from bench import decode as benchmark  # noqa: PLC0415

    with make_progress() as bar:
        task = bar.add_task("decode", total=benchmark.TURNS)
        results = benchmark.compare(list_processors(), advance=lambda: bar.advance(task))
    benchmark.print_results(results)
    if json_file is not None:
        write_results(json_file, results)


@app.command()
def parity(
    data: Annotated[Path, typer.Option(help="The training text, usually tinyshakespeare.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="As in minitransformer train.")
    ] = None,
    json_file: JsonFile = None,
):
    """Train the shakespeare recipe here and in PyTorch, on the same batches from the same weights."""
    require_torch()
    check_files(json_file)
    from bench.parity import compare_training  # noqa: PLC0415  imports PyTorch

    results = [compare_training(data, settings or ())]
    print(json.dumps(results, indent=2))
    if json_file is not None:
        write_results(json_file, results)


def run_quickly():
    """Run all benchmarks in their quick form, and print a section for each when it is done.

    Return all results, and ``{benchmark: message}`` of those that failed. Ctrl-C stops the run.
    """
    from bench.quick import BENCHMARKS  # noqa: PLC0415

    results, failures, start = [], {}, time.monotonic()
    with make_progress() as bar:
        task = bar.add_task("", total=len(BENCHMARKS))
        for done, (name, compare_quickly, show) in enumerate(BENCHMARKS):
            bar.update(task, description=name, completed=done)
            try:
                found = compare_quickly()
            except ContenderError as error:
                failures[name] = str(error)
                bar.console.print(f"{name} failed: {error}", markup=False)
            except KeyboardInterrupt:
                bar.stop()
                bar.console.print(
                    f"stopped after {done} of {len(BENCHMARKS)} benchmarks; nothing was written"
                )
                raise typer.Exit(130) from None
            else:
                results += found
                show(found)
    print(f"\n{len(BENCHMARKS) - len(failures)} benchmarks in {time.monotonic() - start:.0f} s")
    return results, failures


def run_races(races, show=print_table):
    """Run ``races``, each a description and a function of ``advance``; show their results and return them.

    Ctrl-C stops the races and shows the results so far.
    """
    results = []
    with make_progress() as bar:
        task = bar.add_task("", total=len(races) * TURNS)
        try:
            for description, race in races:
                bar.update(task, description=description)
                results.append(race(advance=lambda: bar.advance(task)))
                bar.console.print(f"{description}; ratio {results[-1]['ratio']:.2f}")
        except KeyboardInterrupt:
            bar.stop()
            if results:
                show(results)
            bar.console.print(f"stopped after {len(results)} of {len(races)} races; nothing was written")
            raise typer.Exit(130) from None
    show(results)
    return results


def check_files(json_file, plot_file=None):
    """Raise InputError unless the files can be written, before a race that may take half an hour."""
    if plot_file is not None:
        check_picture(plot_file)
        with prepare_drawing():
            pass  # raises InputError without Matplotlib
    for path in (json_file, plot_file):
        if path is not None:
            check_writable(path)


def require_torch():
    """Raise InputError if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            "this command compares with PyTorch, which is not installed; run pip install '.[oracle]', or the "
            "README's command, which gets PyTorch without the libraries of a GPU"
        )


def main():
    """Run the command; print an error in one line."""
    try:
        app()
    except (ContenderError, InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
