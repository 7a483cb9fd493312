"""``generate``: samples, prompts that are read, and readers that leave."""

import os
import signal
import subprocess

import pytest
from common.command_line import command, minitransformer
from common.processes import running


def test_generate(folder):
    arguments = "generate", "model", "--prompt", "the ", "--max-new-tokens", 30, "--seed", 3
    first = minitransformer(*arguments, cwd=folder)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("the ")
    assert len(first.stdout) == len("the ") + 30 + 1
    assert minitransformer(*arguments, cwd=folder).stdout == first.stdout
    assert minitransformer(*arguments, "--top-k", 1, "--top-p", 0.5, cwd=folder).returncode == 0


def test_weights_of_other_types(folder):
    arguments = "generate", "model", "--prompt", "the ", "--max-new-tokens", 30, "--temperature", 0
    written = minitransformer(*arguments, cwd=folder)
    assert minitransformer(*arguments, "--weights", "float32", cwd=folder).stdout == written.stdout
    for weights in ("bfloat16", "int8"):
        done = minitransformer(*arguments, "--weights", weights, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("the ") and len(done.stdout) == len(written.stdout)
    done = minitransformer(*arguments, "--weights", "int4", cwd=folder)
    assert done.returncode == 2
    assert "'int4' is not one of 'float32', 'bfloat16', 'int8'" in " ".join(done.stderr.split())


def test_several_samples_each_with_a_seed_of_its_own(folder):
    arguments = "generate", "model", "--prompt", "the ", "--max-new-tokens", 20, "--seed", 3
    texts = [minitransformer(*arguments[:-1], seed, cwd=folder).stdout for seed in (3, 4, 5)]
    assert len(set(texts)) == 3
    expected = "".join(
        f"--- sample {number} of 3, seed {number + 2} ---\n{text}" for number, text in enumerate(texts, 1)
    )
    done = minitransformer(*arguments, "--num-samples", 3, cwd=folder)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", expected)


def test_a_text_stops_generation(folder):
    arguments = "generate", "model", "--prompt", "the ", "--max-new-tokens", 60
    whole = minitransformer(*arguments, cwd=folder).stdout
    written = whole.removeprefix("the ")
    stop = written[20:23]
    done = minitransformer(*arguments, "--stop", "QUEEN", "--stop", stop, cwd=folder)
    assert done.stdout == "the " + written[: written.index(stop)] + "\n"


def test_prompts_are_read_line_by_line(folder):
    arguments = "generate", "model", "--max-new-tokens", 9
    expected = [
        minitransformer(*arguments, "--prompt", prompt, "--seed", seed, cwd=folder).stdout
        for seed, prompt in enumerate(["the ", "fox", "", "fox"])
    ]
    assert expected[1] != expected[3]
    done = minitransformer(
        *arguments, "--interactive", "--prompt", "the ", cwd=folder, input="fox\n\nQUEEN\nfox"
    )
    assert done.stdout == "".join(expected[:3]) + expected[3]
    assert done.stderr.startswith("minitransformer: error: the text has characters that the model never saw")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1, "a line was not answered"
    done = minitransformer(*arguments, "--interactive", "--num-samples", 2, cwd=folder, input="fox\nthe \n")
    assert [line for line in done.stdout.splitlines() if line.startswith("---")] == [
        *("--- sample 1 of 2, seed 0 ---", "--- sample 2 of 2, seed 1 ---"),
        *("--- sample 1 of 2, seed 2 ---", "--- sample 2 of 2, seed 3 ---"),
    ]
    assert (done.returncode, done.stderr) == (0, "")


def test_lines_that_are_no_text_are_told_apart(folder):
    done = subprocess.run(
        command("generate", "model", "--interactive", "--max-new-tokens", 3),
        cwd=folder,
        input=b"caf\xe9\nfox\n",
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith(b"fox")
    assert done.stderr == b"minitransformer: error: the line is not UTF-8 text\n"


def test_an_interrupt_ends_an_answer_and_not_the_program(folder):
    with running(
        command("generate", "model", "--interactive", "--max-new-tokens", 10_000_000),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as answering:
        for prompt in (b"fox fox", b"dog dog"):
            answering.stdin.write(prompt + b"\n")
            answering.stdin.flush()
            written = b""
            while prompt not in written or len(written) < 40:
                written += os.read(answering.stdout.fileno(), 1)
            answering.send_signal(signal.SIGINT)
        _, errors = answering.communicate(timeout=60)
    assert (answering.returncode, errors) == (0, b"")


@pytest.mark.parametrize(
    "arguments", [("generate", "model", "--max-new-tokens", 100_000), ("recipes",)], ids=["long", "short"]
)
def test_a_reader_that_leaves_early(folder, arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with running(
        command(*arguments),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as generating:
        generating.stdout.close()
        errors = generating.stderr.read()
        assert generating.wait(timeout=60) == 1
    assert errors == ""
