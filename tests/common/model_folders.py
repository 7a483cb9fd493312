"""Models with random weights, and changes to the files that they are saved as."""

import json

import numpy as np
from safetensors.numpy import load_file, save_file

from minitransformer.models import GPT, GPTConfig

IDS = np.random.default_rng(0).integers(0, 13, (2, 8))


def random_model(**changes):
    settings = {"vocabulary_size": 13, "context_length": 8, "layers": 2, "heads": 2, "width": 8}
    model = GPT(GPTConfig(**settings | changes)).build(seed=1)
    random = np.random.default_rng(1)
    for parameter in model.parameters().values():
        parameter.value[...] += random.normal(0, 0.3, parameter.shape)
    return model


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
