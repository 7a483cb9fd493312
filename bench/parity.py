"""Does the same model learn the same? Our training run and PyTorch's, same weights, same batches.

The ``shakespeare`` recipe in full, then the same initial weights and the same windows through PyTorch's
autograd, attention and AdamW; both are judged on the whole validation part. This compares learning, not
time: the seconds are recorded, but the two share a process.
"""

import time

import numpy as np
import torch
from rich.progress import track

from bench import torch_gpt
from minitransformer.batches import random_windows
from minitransformer.corpus import text_corpus
from minitransformer.evaluation import whole_loss
from minitransformer.memory import reuse_freed_memory
from minitransformer.models import GPT
from minitransformer.recipes import load_recipe
from minitransformer.tokenizer import character_tokenizer, encode
from minitransformer.training import training_steps


def parity(data, assignments=()):
    """Return the result of training the ``shakespeare`` recipe on the text file ``data`` twice."""
    reuse_freed_memory()
    recipe = load_recipe("shakespeare", assignments)
    corpus = text_corpus(data)
    tokenizer = character_tokenizer(corpus.train + corpus.validation)
    tokens, validation = encode(tokenizer, corpus.train), encode(tokenizer, corpus.validation)
    model = GPT(recipe.config(tokenizer.get_vocab_size())).build(seed=recipe.training.seed)
    tensors = torch_gpt.tensors_like(model, torch.float32)

    ours = _train_ours(model, tokens, recipe.training)
    theirs = _train_theirs(tensors, model, tokens, recipe.training)
    val_loss = {"ours": whole_loss(model, validation)}
    for path, parameter in model.parameters().items():
        parameter.value[...] = tensors[path].detach().numpy()
    val_loss["pytorch"] = whole_loss(model, validation)
    differences = np.abs(np.array(ours["losses"]) - np.array(theirs["losses"]))
    return {
        "benchmark": "parity",
        "case": {
            "recipe": recipe.name,
            "max_steps": recipe.training.max_steps,
            "sha256": corpus.source["sha256"],
        },
        "peer": f"pytorch {torch.__version__}",
        "val_loss": val_loss,
        "last_100_train_loss": {"ours": _tail(ours), "pytorch": _tail(theirs)},
        "largest_loss_difference": {
            f"first {count} steps": float(differences[:count].max()) for count in (10, 100, len(differences))
        },
        "seconds": {"ours": ours["seconds"], "pytorch": theirs["seconds"]},
    }


def _train_ours(model, tokens, arguments):
    start = time.perf_counter()
    steps = track(training_steps(model, tokens, arguments), "minitransformer", arguments.max_steps)
    losses = [step.loss for step in steps]
    return {"losses": losses, "seconds": time.perf_counter() - start}


def _train_theirs(tensors, model, tokens, arguments):
    """Repeat the batches of ``training_steps``: the same generator, asked the same."""
    batches = random_windows(model, tokens, arguments.per_device_train_batch_size, arguments.seed)
    optimiser = torch_gpt.adamw(tensors, arguments)
    start = time.perf_counter()
    losses = []
    for step, batch in zip(track(range(arguments.max_steps), "pytorch"), batches, strict=False):
        rate = arguments.learning_rate_at(step)
        ids, targets = torch.from_numpy(batch["ids"]), torch.from_numpy(batch["targets"])
        losses.append(
            torch_gpt.update(tensors, model.config, optimiser, ids, targets, rate, arguments.max_grad_norm)
        )
    return {"losses": losses, "seconds": time.perf_counter() - start}


def _tail(run):
    return float(np.mean(run["losses"][-100:]))
