"""Our training run and PyTorch's, from the same weights on the same batches: do they learn the same?

The ``shakespeare`` recipe in full, then the same initial weights and the same windows through PyTorch's
autograd, attention and AdamW; both are evaluated on all validation data. This compares learning, not time:
the seconds are recorded, but both run in one process.
"""

import time

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from bench import torch_gpt
from minitransformer.errors import InputError
from minitransformer.evaluation.scores import whole_loss
from minitransformer.models import GPT
from minitransformer.recipes import load_recipe
from minitransformer.recipes.material import load_material
from minitransformer.system.memory import reuse_freed_memory
from minitransformer.training import train_step
from minitransformer.training.optimisers import make_optimiser

RECIPE = "shakespeare"
PEER_HAS = {"dropout": (0.0,), "positions": ("learned",), "activation": ("gelu_exact", "gelu_tanh")}


def compare_training(data, assignments=()):
    """Return the result of training the ``shakespeare`` recipe on the text file ``data`` twice."""
    reuse_freed_memory()
    recipe = load_recipe(RECIPE, assignments)
    args = recipe.training
    material = load_material(recipe, [data])
    model = GPT(recipe.config(material.tokenizer.get_vocab_size())).build(seed=args.seed)
    _check_comparable(model.config, args)
    tensors = torch_gpt.tensors_like(model, torch.float32)

    optimiser, their_optimiser = make_optimiser(model, args), torch_gpt.adamw(tensors, args)
    ours = _train(
        "minitransformer",
        lambda batch, rate: train_step(model, optimiser, [batch], rate, args.max_grad_norm).loss,
        material.train,
        args,
    )
    theirs = _train(
        "pytorch",
        lambda batch, rate: torch_gpt.train_step(
            *(tensors, model.config, their_optimiser),
            *(torch.from_numpy(batch[name]) for name in ("ids", "targets")),
            *(rate, args.max_grad_norm),
        ),
        material.train,
        args,
    )
    val_loss = {"ours": whole_loss(model, material.validation)}
    for path, parameter in model.parameters().items():
        parameter.value[...] = tensors[path].detach().numpy()
    val_loss["pytorch"] = whole_loss(model, material.validation)
    differences = np.abs(np.array(ours["losses"]) - np.array(theirs["losses"]))
    counts = sorted({min(count, len(differences)) for count in (10, 100, len(differences))})
    return {
        "benchmark": "parity",
        "case": {
            "recipe": recipe.name,
            "max_steps": len(differences),
            "sha256": material.source["sha256"],
        },
        "peer": f"pytorch {torch.__version__}",
        "val_loss": val_loss,
        "last_100_train_loss": {"ours": _tail(ours), "pytorch": _tail(theirs)},
        "largest_loss_difference": {
            f"first {count} steps": float(differences[:count].max()) for count in counts
        },
        "seconds": {"ours": ours["seconds"], "pytorch": theirs["seconds"]},
    }


def _train(name, train, dataset, args):
    """Run all steps by ``train(batch, learning_rate)``, which returns the loss."""
    steps = args.steps_for(dataset)
    losses, start = [], time.perf_counter()
    for step in track(range(steps), name, console=Console(stderr=True)):
        batch = dataset.collate(dataset.training_places(step, args.rows, args.seed))
        losses.append(train(batch, args.learning_rate_at(step, steps)))
    return {"losses": losses, "seconds": time.perf_counter() - start}


def _check_comparable(config, args):
    """Raise InputError for a setting that the PyTorch model does not have."""
    for name, values in PEER_HAS.items():
        if getattr(config, name) not in values:
            raise InputError(
                f"{name} is {getattr(config, name)!r}; parity compares {' and '.join(map(repr, values))}"
            )
    if args.optim != "adamw":
        raise InputError(f"optim is {args.optim!r}; parity compares 'adamw'")


def _tail(run):
    return float(np.mean(run["losses"][-100:]))
