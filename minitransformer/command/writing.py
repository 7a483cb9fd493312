"""What the command ``generate`` prints: continuations of one prompt, or of each line of standard input."""

import sys

from minitransformer.errors import InputError
from minitransformer.generation.sampling import generate
from minitransformer.generation.streaming import decode_prompt
from minitransformer.system.file_names import GENERATION
from minitransformer.system.files import read_json


def read_generation_settings(folder):
    """Return the default settings of ``generate`` for the model in ``folder``, a dictionary."""
    settings = {"max_new_tokens": 500, "temperature": 0.8}
    path = folder / GENERATION
    if path.exists():
        written = read_json(path)
        if isinstance(written.get("max_new_tokens"), int):
            settings["max_new_tokens"] = written["max_new_tokens"]
        if written.get("do_sample") is False and "temperature" not in written:
            settings["temperature"] = 0.0
    return settings


class Writer:
    """Prints ``samples`` continuations of each prompt to standard output, piece by piece.

    The first text is generated with ``seed``, each later one with the next seed. ``settings`` are keyword
    arguments of ``generate``.
    """

    def __init__(self, model, tokenizer, seed, samples, **settings):
        if samples < 1:
            raise InputError(f"num_samples is {samples}; expected at least 1")
        if samples > 1 and settings["temperature"] == 0:
            raise InputError(
                f"at temperature 0 all {samples} samples would be the same; give a higher --temperature"
            )
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.seed, self.samples = seed, samples

    def write(self, prompt):
        """Print texts that continue ``prompt``; if several, each under a line with its number and seed."""
        for number in range(1, self.samples + 1):
            pieces = generate(self.model, prompt, tokenizer=self.tokenizer, seed=self.seed, **self.settings)
            if self.samples > 1:
                sys.stdout.write(f"--- sample {number} of {self.samples}, seed {self.seed} ---\n")
            self.seed += 1
            sys.stdout.write(decode_prompt(self.tokenizer, prompt))
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
            sys.stdout.write("\n")

    def answer_lines(self):
        """Continue each line of standard input until it ends; return False if one of them was an error.

        Ctrl-C ends a continuation; at the prompt for a line it ends the program, as Ctrl-D does.
        """
        if sys.stdin is None:
            raise InputError("--interactive reads standard input, which is closed")
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        sign = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
        succeeded = True
        while True:
            try:
                line = input(sign)
            except EOFError:
                sys.stdout.write("\n" if sign else "")
                return succeeded
            try:
                self.write(_check_utf8(line))
            except KeyboardInterrupt:
                sys.stdout.write("\n")
            except InputError as error:
                succeeded = False
                print(f"minitransformer: error: {error}", file=sys.stderr)
            sys.stdout.flush()


def _check_utf8(line):
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("the line is not UTF-8 text") from None
    return line
