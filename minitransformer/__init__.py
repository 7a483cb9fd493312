"""A transformer to read, verify and race: every forward and backward pass written by hand.

    functional        the maths, in forward/backward pairs on NumPy or CuPy arrays
    layers            parameters and composition: each call returns its value and its pullback
    models            GPT and GPTConfig, which stand here, too
    gradcheck         is a backward the derivative of its forward?
    trace             print every operation of a forward and its backward
    inference         save nothing for a backward, where none will come
    reference         switch the fused kernels off
    data, training    text to tokens to batches; Trainer and TrainingArguments, which stand here, too
    load_model, save_model, load_tokenizer, generate        use what was trained

``model(ids)`` returns the logits and the pullback. All of this is loaded when it is first used. The command
line is ``minitransformer --help``.
"""

import importlib

__all__ = [
    "GPT",
    "GPTConfig",
    "Trainer",
    "TrainingArguments",
    "data",
    "functional",
    "generate",
    "gradcheck",
    "inference",
    "layers",
    "load_model",
    "load_tokenizer",
    "models",
    "reference",
    "save_model",
    "trace",
    "training",
]
__version__ = "0.1.0"

_WHERE = {
    "GPT": "models",
    "GPTConfig": "models",
    "Trainer": "training",
    "TrainingArguments": "training",
    "generate": "generation.sampling",
    "inference": "dispatch",
    "load_model": "pretrained.model_folder",
    "load_tokenizer": "data.tokenizer",
    "reference": "dispatch",
    "save_model": "pretrained.model_folder",
    "trace": "inspection.tracing",
}


def __getattr__(name):
    """Import what is asked for: the command line has something to say before NumPy is loaded."""
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    """Return the names that completion shows."""
    return [*__all__, "__version__"]
