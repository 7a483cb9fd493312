"""The files of a run's folder other than weights and checkpoints."""

from dataclasses import replace
from pathlib import Path

from minitransformer.data.tokenizer import SPECIALS, save_tokenizer, start_id
from minitransformer.system.file_names import CORPUS, GENERATION, RUN
from minitransformer.system.files import write_json
from minitransformer.training import Callback


class RunFiles(Callback):
    """Writes the other files wherever weights are saved, and the record of the run at its start."""

    def __init__(self, recipe, material, data):
        self.recipe, self.material = recipe, material
        self.data = [str(Path(path).resolve()) for path in data]

    def on_train_begin(self, trainer):
        """Write the record of the run, before its first step."""
        training = replace(self.recipe.training, overwrite_output_dir=False)  # not again on resume
        table = replace(self.recipe, training=training).table()
        write_json(trainer.output_dir / RUN, {"recipe": table, "data": self.data})
        self.on_save(trainer, trainer.output_dir)

    def on_save(self, trainer, folder):
        """Write the tokenizer, the source, and how to generate."""
        tokenizer, context_length = self.material.tokenizer, trainer.model.config.context_length
        save_tokenizer(tokenizer, folder, context_length)
        write_json(folder / CORPUS, self.material.source)
        if "generate" in self.recipe.architecture.commands:
            self._write_generation_settings(folder, tokenizer, context_length)

    def _write_generation_settings(self, folder, tokenizer, context_length):
        settings = {
            "bos_token_id": _find_start_for_transformers(tokenizer),
            "eos_token_id": None,  # no token ends a text
            "max_length": context_length + 1,  # where transformers stops; the last token is not an input
        }
        if self.material.answer_length:
            settings |= {"max_new_tokens": self.material.answer_length, "do_sample": False}
        write_json(folder / GENERATION, settings)


def _find_start_for_transformers(tokenizer):
    """Return what a text without a prompt starts after; None for padding, which transformers never sees."""
    start = start_id(tokenizer)
    return None if tokenizer.id_to_token(start) == SPECIALS["pad_token"] else start
