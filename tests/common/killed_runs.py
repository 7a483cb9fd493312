"""A training run that is killed again and again and resumed each time; run by ``test_resume`` as a process.

Everything is imported once; every attempt is a fork of this process, killed by SIGKILL after a random time.
Kernels are off: loading them takes longer than all that is to be killed.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

from common.tiny_runs import saved_steps, sequences, tiny_trainer, windows
from minitransformer import reference
from minitransformer.training import Callback

KINDS = {
    "windows": {
        "dataset": windows,
        "max_steps": 250,
        "load_best_model_at_end": True,
    },
    "sequences": {
        "dataset": sequences,
        "max_steps": 80,
        "dtype": "float64",
        "optim": "sgd",
        "momentum": 0.9,
        "learning_rate": 0.1,
        "gradient_accumulation_steps": 2,
    },
}


def trainer_of(kind, folder, callbacks=(), **changes):
    """Return the trainer of a run long enough to be killed in."""
    settings = {"logging_steps": 5, "eval_steps": 3, "save_steps": 100, "save_total_limit": 2}
    settings |= KINDS[kind] | changes
    return tiny_trainer(folder, settings.pop("dataset")(), callbacks, **settings)


class Began(Callback):
    """Tells the parent that training has begun."""

    def __init__(self, pipe):
        self.pipe = pipe

    def on_train_begin(self, trainer):
        os.write(self.pipe, b"!")


def start(kind, folder, **changes):
    """Fork a process that resumes the run and saves at every step; return its id once it trains."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            warnings.simplefilter("error")
            trainer = trainer_of(kind, folder, [Began(writing)], **{"save_steps": 1} | changes)
            with reference():
                trainer.train(resume_from_checkpoint=True)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    return child


def within_a_save(folder):
    """Return whether a checkpoint is half written."""
    steps = [
        int(path.name.split(".")[1].removeprefix("checkpoint-")) for path in folder.glob(".checkpoint-*.part")
    ]
    return any(step > max(saved_steps(folder), default=-1) for step in steps)


def enough(seen, kills):
    """Return whether there were ``kills`` of them, some within a save, and the run got on between them."""
    varied = seen["within_a_save"] >= kills // 10 and len(set(seen["steps"])) > kills // 4
    return len(seen["steps"]) >= (kills if varied else 5 * kills)


def main(kind, folder, kills):
    """Kill the run ``kills`` times or more, let it end, and print what was seen."""
    began = time.monotonic()
    os.waitpid(start(kind, folder / "probe", max_steps=10), 0)
    seconds_a_step = (time.monotonic() - began) / 10
    delays, run = random.Random(0), folder / "run"
    seen = {"within_a_save": 0, "steps": []}
    while not enough(seen, kills):
        child = start(kind, run)
        time.sleep(delays.uniform(0, 5) * seconds_a_step)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the run ended before it was killed, with status {status}; it needs more steps")
        seen["within_a_save"] += within_a_save(run)
        seen["steps"].append(max(saved_steps(run), default=0))
    _, status = os.waitpid(start(kind, run, save_steps=100), 0)
    print(json.dumps(seen))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
