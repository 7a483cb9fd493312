"""The table of architectures: all that the rest of the library knows of each system.

To add one, write its model, its layout in ``minitransformer.pretrained``, and its row here. A model has

- ``config``, a frozen dataclass with at least ``vocabulary_size`` and ``context_length``;
- ``model(batch, key=None)``, which returns the value and its pullback;
- ``loss(batch, key=None)``, which returns ``{name: total}`` and ``weights → None``, and
  ``count_targets(batch)``, ``{name: count}`` by the same names;
- ``forward_flops(length)``, by which recipes predict their cost;
- to generate, ``hidden(batch, key=None, cache=None)``, ``head(h)``, ``cache(rows)`` and
  ``for_decoding(dtype)``, as ``GPT`` has them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from minitransformer.data.datasets import TokenWindows
from minitransformer.errors import InputError
from minitransformer.evaluation.scores import evaluate_task, evaluate_text
from minitransformer.models.gpt import GPT, GPTConfig


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    ``name`` is how recipes call the architecture and ``title`` how people do. ``layout`` is the module of
    ``minitransformer.pretrained`` that says how its folders are laid out. ``text_dataset(tokens, length)``
    makes the data set of a text; ``evaluate_text`` and ``evaluate_task`` score a model as the functions of
    ``minitransformer.evaluation.scores`` do. ``commands`` are those that apply to a trained model.
    """

    name: str
    title: str
    config: type
    model: type
    layout: str
    text_dataset: Callable
    evaluate_text: Callable
    evaluate_task: Callable
    commands: frozenset[str]

    def check_command(self, command):
        """Raise InputError unless ``command`` applies to a model of this architecture."""
        if command not in self.commands:
            known = ", ".join(sorted(self.commands))
            raise InputError(f"{command} does not apply to a {self.title}; commands that apply: {known}")


ARCHITECTURES = {
    row.name: row
    for row in [
        Architecture(
            name="gpt",
            title="GPT",
            config=GPTConfig,
            model=GPT,
            layout="gpt2",
            text_dataset=TokenWindows,
            evaluate_text=evaluate_text,
            evaluate_task=evaluate_task,
            commands=frozenset({"generate", "evaluate", "attention", "positions"}),
        ),
    ]
}


def find_architecture(thing):
    """Return the row of ``thing``, a model or its configuration. Raises TypeError if it has none."""
    for kind in type(thing).__mro__:  # a class may have a row of its own beside that of its parent
        for row in ARCHITECTURES.values():
            if kind in (row.config, row.model):
                return row
    known = ", ".join(row.model.__name__ for row in ARCHITECTURES.values())
    raise TypeError(f"there is no architecture with a {type(thing).__name__}; the table has {known}")
