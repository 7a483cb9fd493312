"""The validation data of a trained model: found again from the record of what the model was trained on."""

from pathlib import Path

from minitransformer.data.corpus import python_corpus, text_corpus
from minitransformer.data.tasks import TASKS
from minitransformer.data.text import Text
from minitransformer.data.text_files import is_pattern
from minitransformer.errors import InputError
from minitransformer.system.file_names import CORPUS
from minitransformer.system.files import read_json


def load_validation(folder, data=()):
    """Return the validation data of the model in ``folder``, ``Text`` or ``Sequences``, and its name.

    The name is ``"validation"`` for the part that the model was not trained on. If paths ``data`` are given
    and hold another text than that of the run, all of it is returned, with the name ``"whole"``.

    Raises InputError if the validation part is not known: because there is no record or a damaged one, or
    because the text has changed or is missing.
    """
    path = Path(folder) / CORPUS
    if not path.exists():
        if not data:
            raise InputError(f"{folder} does not say what it was trained on; give a text file with --data")
        return _join(text_corpus(*data)), "whole"
    kind, digest, paths = _read_record(path)
    if kind in TASKS:
        if data:
            raise InputError(f"{folder} was trained on the task {kind!r}, which makes its own examples")
        return TASKS[kind]().validation, "validation"
    if data:
        corpus = text_corpus(*data)
        same = corpus.source["sha256"] == digest
        return (corpus.validation, "validation") if same else (_join(corpus), "whole")
    if kind == "text" and not all(Path(part).exists() for part in paths if not is_pattern(part)):
        raise InputError(f"the text that {folder} was trained on is missing; say where it is with --data")
    corpus = python_corpus() if kind == "python" else text_corpus(*paths)
    if corpus.source["sha256"] != digest:
        raise InputError(
            f"the text that {folder} was trained on has changed since, so that its validation part "
            "is not known; give a text file with --data"
        )
    return corpus.validation, "validation"


def _read_record(path):
    """Return the kind of corpus, the SHA-256 and the paths of its text; raise InputError if damaged."""
    source = read_json(path)
    kind, paths = source.get("corpus"), source.get("paths")
    named = isinstance(paths, list) and paths and all(isinstance(part, str) for part in paths)
    if kind not in ("python", *TASKS) and not (kind == "text" and named):
        raise InputError(f"{path} is damaged: it does not say what the model was trained on")
    return kind, source.get("sha256"), paths


def _join(corpus):
    """Return both parts of ``corpus`` as one text, with the document that they divide joined again."""
    spans = list(corpus.train.spans)
    for path, start, stop in corpus.validation.spans:
        continues = spans and (spans[-1][0], spans[-1][2]) == (path, start)
        spans.append((path, spans.pop()[1] if continues else start, stop))
    return Text(spans)
