"""Scores of a model, with a progress bar on standard error while they are computed."""

from rich.console import Console

from minitransformer.data.tokenizer import id_count
from minitransformer.models.table import find_architecture
from minitransformer.system.progress import show_progress


def score_task(model, tokenizer, examples):
    """Return the scores of ``model`` on the ``examples`` of a task, as its architecture does."""
    with show_scoring("evaluating") as advance:
        return find_architecture(model).evaluate_task(model, examples, advance, id_count(tokenizer))


def score_text(model, tokenizer, tokens, text):
    """Return the scores of ``model`` on ``text``, whose ids are ``tokens``, as its architecture does."""
    with show_scoring("evaluating") as advance:
        return find_architecture(model).evaluate_text(model, tokenizer, tokens, text, advance)


def show_scoring(description):
    """Show a progress bar on standard error, as ``show_progress`` does; standard output is for scores."""
    return show_progress(description, Console(stderr=True))
