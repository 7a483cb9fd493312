"""The quick form of every benchmark: few cases and turns, on all cores; less than five minutes in all."""

from collections.abc import Callable
from typing import NamedTuple

from bench import attention, busy, cross_entropy, decode, memory, step
from bench.report import print_busy, print_cross_entropy, print_memory, print_page_faults, print_table


class Benchmark(NamedTuple):
    """A section of the page that ``python -m bench`` prints."""

    name: str
    compare_quickly: Callable  # returns the results, a list
    show: Callable  # prints them


def show_step(results):
    """Print the times of training steps, then their memory."""
    print_table(results)
    print_page_faults(results)


def show_memory(results):
    """Print the memory of attention and its growth."""
    print_memory(results, memory.compute_slopes(results))


BENCHMARKS = (
    Benchmark("step", step.compare_quickly, show_step),
    Benchmark("busy", busy.compare_quickly, print_busy),
    Benchmark("cross-entropy", cross_entropy.compare_quickly, print_cross_entropy),
    Benchmark("decode", decode.compare_quickly, decode.print_results),
    Benchmark("attention", attention.compare_quickly, print_table),
    Benchmark("memory", memory.compare_quickly, show_memory),
)
