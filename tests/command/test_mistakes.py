"""Mistakes: each is answered by one line that says how to mend it."""

import os
import signal

import pytest
from common.command_line import SETTINGS, answer, assert_one_error, minitransformer


def test_no_such_kernels(folder):
    done = minitransformer("evaluate", "model", "--kernels", "fast", cwd=folder)
    assert done.returncode == 2
    assert "'fused', 'reference'" in done.stderr


def mistakes():
    train = "train", "shakespeare", "--output-dir", "new"
    yield "recipe", ("train", "pyton"), "there is no recipe 'pyton'; did you mean 'python'?"
    yield "setting", ("train", "--set", "max_step=1"), "did you mean 'max_steps'?"
    yield "heads", (*train, "--set", "heads=3"), "cannot be divided into 3 heads"
    yield "no data", train, "give it with --data PATH"
    yield "missing data", (*train, "--data", "none.txt"), "there is no file none.txt"
    yield "empty data", (*train, "--data", "empty.txt"), "empty.txt is empty"
    yield "bytes", (*train, "--data", "bytes.txt"), "byte 0xff at offset 2"
    yield "short", (*train, "--data", "short.txt"), "the text is too short"
    yield "device", (*train, "--data", "text.txt", "--device", "tpu"), "no device 'tpu'"
    yield (
        "folder",
        ("train", "shakespeare", "--data", "text.txt", "--output-dir", "model"),
        "holds another run",
    )
    yield "file", ("train", "shakespeare", "--data", "text.txt", "--output-dir", "text.txt"), "is a file"
    yield "memory", (*train, "--data", "text.txt", "--set", "width=20000000"), "not enough memory"
    yield "no model", ("generate", "nowhere"), "there is no folder nowhere"
    yield "not a model", ("evaluate", "."), "config.json is missing"
    yield "unknown characters", ("generate", "model", "--prompt", "QUEEN"), "never saw: 'E' (U+0045)"
    yield "seed", ("generate", "model", "--seed", -1), "seed is -1; expected at least 0"
    yield "temperature", ("generate", "model", "--temperature", -1), "temperature is -1"
    yield "empty stop", ("generate", "model", "--stop", ""), "stop is ''; expected text"
    yield "no samples", ("generate", "model", "--num-samples", 0), "num_samples is 0; expected at least 1"
    yield (
        "same samples",
        ("generate", "model", "--num-samples", 2, "--temperature", 0),
        "at temperature 0 all 2 samples would be the same",
    )
    yield "other text", ("evaluate", "model", "--data", "bytes.txt"), "is not UTF-8"


@pytest.mark.parametrize(
    ("arguments", "message"), [pytest.param(*case, id=name) for name, *case in mistakes()]
)
def test_a_mistake_is_answered_by_one_line(folder, arguments, message):
    (folder / "empty.txt").write_bytes(b"")
    (folder / "bytes.txt").write_bytes(b"ab\xff")
    (folder / "short.txt").write_text("too short")
    assert_one_error(answer(*arguments, cwd=folder), message)
    assert not (folder / "new").exists()


def test_cuda_without_a_gpu(folder):
    done = minitransformer("generate", "model", "--device", "cuda", cwd=folder, env=without_gpu())
    assert_one_error(done, "minitransformer: error: device 'cuda' needs")


def without_gpu():
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(folder):
    """A limit on the size of files stands in for the disk: the weights do not fit, the rest does."""
    import resource

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = minitransformer(
        *("train", "shakespeare", "--data", "text.txt", "--output-dir", "full", *SETTINGS),
        cwd=folder,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("minitransformer: error: ")
    assert done.stderr.count("\n") == 1
    assert not list((folder / "full").glob(".*")), "a temporary file was left behind"
