"""Files that something happened to: they are refused by name, or give what was saved, and nothing else."""

import contextlib
import json
import shutil
import struct
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from common.tiny_runs import tiny_trainer
from safetensors.numpy import load, load_file, save, save_file

from minitransformer.errors import InputError
from minitransformer.pretrained.model_folder import load_model
from minitransformer.training.checkpoints import load_checkpoint
from minitransformer.training.optimisers import make_optimiser

FILES = ["model.safetensors", "optimizer.safetensors", "config.json", "trainer_state.json"]
CASES = 1000
MEMORY = 32 * 2**20  # bytes that reading any of these files may take


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The last checkpoint of a tiny run."""
    folder = tmp_path_factory.mktemp("fuzzed") / "run"
    tiny_trainer(folder).train()
    return folder / "checkpoint-10"


class Loader:
    """Loads a checkpoint folder, and compares what it loads with what was saved."""

    def __init__(self, checkpoint):
        trainer = tiny_trainer(checkpoint.parent)
        self.model, self.args = trainer.model, trainer.args
        self.optimiser = make_optimiser(self.model, self.args)
        self.state = self.load(checkpoint)
        self.expected = [array.copy() for array in self.arrays()]

    def load(self, folder):
        return load_checkpoint(folder, self.model, self.optimiser, self.args)

    def arrays(self):
        """Return views of all parameters and of all their moments."""
        buffers = self.model.flat.values, self.optimiser.first_moment, self.optimiser.second_moment
        parts = [parameter.part for parameter in self.model.parameters().values()]
        return [buffer[part] for buffer in buffers for part in parts]

    def outcome(self, folder, *, whole_state=True):
        """Return whether ``folder`` loads; fail if it loads anything else than what was saved."""
        for array in self.arrays():
            array[...] = 7
        try:
            state = self.load(folder)
        except InputError:
            assert all((array == 7).all() for array in self.arrays()), "changed, though refused"
            return False
        for array, expected in zip(self.arrays(), self.expected, strict=True):
            np.testing.assert_array_equal(array, expected)
        assert state.items() >= self.state.items() or not whole_state
        return True


# --- what happens to a file; each takes its content and a generator, and returns another content


def one_of(choices, random):
    return choices[random.integers(len(choices))]


def truncated(content, random):
    return content[: random.integers(len(content))]


def emptied(content, random):
    return b""


def with_flipped_bits(content, random, below=None):
    damaged = bytearray(content)
    for place in random.integers(0, below or len(content), random.integers(1, 4)):
        damaged[place] ^= 1 << random.integers(8)
    return bytes(damaged)


def with_a_hole(content, random):
    """As after a lost block: a stretch of zeros."""
    start, stop = sorted(random.integers(0, len(content) + 1, 2))
    return content[:start] + bytes(stop - start) + content[stop:]


def lengthened(content, random):
    return content + random.bytes(int(random.integers(1, 100)))


def replaced(content, random):
    return random.bytes(int(random.integers(1, 2 * len(content))))


def of_another_kind(content, random):
    return json.dumps({"a": 1}).encode() if content[:1] != b"{" else struct.pack("<Q", 2) + b"{}"


ANY = [truncated, emptied, with_flipped_bits, with_a_hole, lengthened, replaced, of_another_kind]


def header_of(content):
    """Return the header of a safetensors file, and where the tensors begin."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), 8 + length


def with_header(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def hostile_lengths(content):
    """Return contents whose header claims another length."""
    lengths = 0, 1, 2**31, 10**8, 10**8 + 1, 2**63 - 8, 2**63, 2**64 - 1, len(content) - 8, len(content) - 7
    return [struct.pack("<Q", length) + content[8:] for length in lengths]


def with_hostile_length(content, random):
    return one_of(hostile_lengths(content), random)


def with_header_of_flipped_bits(content, random):
    return with_flipped_bits(content, random, below=header_of(content)[1])


def hostile_headers(content):
    """Return contents with a tensor of an impossible size, place, shape, type or name, or with no tensor."""
    header, start = header_of(content)
    data = content[start:]
    name = list(header)[-1]
    entry, end = header[name], len(data)
    entries = [
        {"shape": [2**40, 2**40]},
        {"shape": [2**62, 4]},
        {"shape": [2**32], "data_offsets": [0, 2**34]},
        {"shape": [0]},
        {"shape": []},
        {"shape": [-1, 8]},
        {"shape": [1.5]},
        {"shape": "many"},
        {"shape": [1] * 70 + entry["shape"]},
        {"shape": entry["shape"][::-1]},
        {"data_offsets": [0, 2**63]},
        {"data_offsets": entry["data_offsets"][::-1]},
        {"data_offsets": [0, end]},
        {"data_offsets": [end, end + 4]},
        {"data_offsets": [-4, 0]},
        {"data_offsets": None},
        *(
            {"dtype": kind}
            for kind in ("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "C64", "F99", 7)
        ),
    ]
    headers = [
        *(header | {name: entry | changes} for changes in entries),
        {other: part for other, part in header.items() if other != name},
        {other + "x" * (other == name): part for other, part in header.items()},
        header | {"extra": entry},
        header | {"": entry},
        header | {"transformer.h.1000000.attn.bias": entry},
        header | {"__metadata__": {"sha256": 5}},
        header | {"__metadata__": []},
        [],
        {},
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ]
    return [with_header(header, data) for header in headers]


def with_hostile_header(content, random):
    return one_of(hostile_headers(content), random)


def with_other_arrays(content, random):
    """A whole file with a tensor of another type or shape, its record of the content as it was."""
    tensors = load(content)
    name = random.choice(sorted(tensors))
    tensor = tensors[name]
    others = [
        *(tensor.astype(kind) for kind in ("float64", "int32", "uint8", "bool")),
        *(tensor[None], tensor[:-1].copy(), np.zeros(0, np.float32), np.full_like(tensor, np.nan)),
    ]
    return save(tensors | {name: one_of(others, random)}, header_of(content)[0].get("__metadata__"))


def of_half_precision(content, random):
    """A whole file of half the precision, its record of the content as it was."""
    kind = one_of(["float16", ml_dtypes.bfloat16], random)
    tensors = {name: tensor.astype(kind) for name, tensor in load(content).items()}
    return save(tensors, header_of(content)[0].get("__metadata__"))


BINARY = [
    *ANY,
    *(with_hostile_length, with_header_of_flipped_bits),
    *(with_hostile_header, with_hostile_header, with_other_arrays, of_half_precision),
]


def with_hostile_value(content, random):
    """A field that is missing, or that holds something else."""
    values = json.loads(content)
    place, name = values, random.choice(sorted(values))
    while isinstance(place[name], dict) and place[name] and random.random() < 0.8:
        place = place[name]
        name = random.choice(sorted(place))
    others = [
        *(None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, "", "x", "ÿ\0", [], {}, [None]),
        *(float("nan"), float("inf"), [[1]] * 10, {"step": 1}, [{}], [{"val_loss": "x"}], "7" * 5000),
    ]
    if random.random() < 0.1:
        del place[name]
    else:
        place[name] = one_of(others, random)
    return json.dumps(values).encode()


def of_hostile_text(content, random):
    texts = [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"step": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe" + content,
        b"\xef\xbb\xbf" + content,
        content.replace(b"{", b'{"step": 3,', 1),
        content.replace(b": ", b": 1e999 ", 1),
        content.replace(b'"', b"'"),
        content + content,
        b"null",
        b'"text"',
        b'{"a": "\\ud800"}',
        content.decode().encode("utf-16"),
    ]
    return one_of(texts, random)


TEXT = [*ANY, with_hostile_value, with_hostile_value, with_hostile_value, of_hostile_text]


def without_record(folder):
    """Take the SHA-256 out of the files of ``folder``, as other programs write them."""
    for name in ("model.safetensors", "optimizer.safetensors"):
        save_file(load_file(folder / name), folder / name, metadata={"format": "pt"})
    path = folder / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["sha256"]
    path.write_text(json.dumps(state))


def can_be_noticed(name, damage):
    """Whether a reader can notice ``damage`` to a file without a checksum."""
    changes_content = with_flipped_bits, with_a_hole, of_half_precision
    return name.endswith(".json") or damage not in changes_content


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not recorded"])
def test_a_thousand_damaged_files_are_refused_or_harmless(checkpoint, tmp_path, recorded):
    loader, folder = Loader(checkpoint), tmp_path / "checkpoint-10"
    shutil.copytree(checkpoint, folder)
    if not recorded:
        without_record(folder)
    assert loader.outcome(folder)
    random, loaded = np.random.default_rng(recorded), 0
    for case in range(CASES // 2):
        name = FILES[case % len(FILES)]
        damages = BINARY if name.endswith(".safetensors") else TEXT
        if not recorded:
            damages = [damage for damage in damages if can_be_noticed(name, damage)]
        damage = one_of(damages, random)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(damage(content, random))
        loaded += loader.outcome(folder, whole_state=recorded or name != "trainer_state.json")
        with contextlib.suppress(InputError):
            load_model(folder)
        (folder / name).write_bytes(content)
    assert loader.outcome(folder)
    assert 0 < loaded < CASES // 8, "nothing loads, or the damages are too gentle"


def test_moments_that_this_optimiser_does_not_have_are_refused(checkpoint, tmp_path):
    loader, folder = Loader(checkpoint), tmp_path / "checkpoint-10"
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "optimizer.safetensors")
    save_file({**tensors, "third_moment": np.zeros(3)}, folder / "optimizer.safetensors")
    with pytest.raises(InputError, match="holds tensors that this run's optimiser does not have"):
        loader.load(folder)


# --- what claims more than there is


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_what_a_header_claims_takes_no_memory(checkpoint, tmp_path, name):
    loader, folder = Loader(checkpoint), tmp_path / "checkpoint-10"
    shutil.copytree(checkpoint, folder)
    content = (folder / name).read_bytes()
    tracemalloc.start()
    for damaged in [*hostile_headers(content), *hostile_lengths(content)]:
        (folder / name).write_bytes(damaged)
        tracemalloc.reset_peak()
        held, _ = tracemalloc.get_traced_memory()
        loader.outcome(folder)
        _, peak = tracemalloc.get_traced_memory()
        assert peak - held < MEMORY
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_hundred_gigabytes_that_are_not_asked_for_are_refused_at_once(checkpoint, tmp_path, name):
    """A sparse file, whole as such: one tensor has grown, and the file has the size that its header says."""
    loader, folder = Loader(checkpoint), tmp_path / "checkpoint-10"
    shutil.copytree(checkpoint, folder)
    header, _ = header_of((folder / name).read_bytes())
    last = max(
        (key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"][1]
    )
    start = header[last]["data_offsets"][0]
    header[last] |= {"shape": [25 * 10**9], "data_offsets": [start, start + 10**11]}
    with (folder / name).open("wb") as file:
        file.write(with_header(header, b""))
        file.truncate(file.tell() + start + 10**11)
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(InputError, match=r"has shape \(25000000000,\); expected"):
        loader.load(folder)
    assert time.monotonic() - began < 5
    (folder / name).unlink()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY
