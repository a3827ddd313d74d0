"""A trainer that is killed at each thing it does to files, one after another.

Run as `python -m tests.learner.killed save|publish|policy MODEL FOLDER`, with batches in FOLDER. Each death is
that of a process of its own, by SIGKILL, in a directory named by the number of what it was about to do;
the last directory is that of the one that was not killed.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from transformers import PreTrainedModel

from configs.schema import LearnerSection
from configs.sft import PolicyRecipe
from learner.overlap import Overlapping
from learner.policy_files import save as write
from learner.publish import Publisher
from learner.tiny_policy import make_model, make_tokenizer
from learner.trainer import Trainer
from rollout import checkpoints, snapshot
from rollout.ledger import LedgerCounts
from rollout.lineage import Lineage
from rollout.pass_rates import Rates
from rollout.snapshot import Snapshot
from rollout.tokens import ChatTokens
from rollout.types import decode_batch
from tests.learner.ranked import state_of, weights

# What changes files, and what opens them.
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}
RUN_ID = "run"


def make_trainer(model: Path, directory: Path) -> Trainer:
    """One that publishes into `directory`, as a run's does."""
    publisher = Publisher(
        directory=str(directory / "shm"),
        fallback=directory / "weights",
        run_id=RUN_ID,
        log=directory / "version.json",
    )
    return Trainer(
        model_path=model,
        dtype="bfloat16",
        section=LearnerSection(lr=1e-2, warmup_steps=3),
        temperature=1.0,
        publisher=Overlapping(publisher),
    )


def complete(run_dir: Path, trainer: Trainer) -> Path:
    """A checkpoint as a run writes one; of older ones, only the last is kept."""
    part = checkpoints.begin(run_dir, trainer.step)
    trainer.save(part)
    state = Snapshot(
        step=trainer.step,
        version=trainer.version,
        lineage=Lineage(),
        weights_every=1,
        cursor=0,
        rates=Rates(),
        requeued=[],
        pools=[],
        next_id=0,
        queued=[],
        running=[],
        ledger=LedgerCounts(groups={}, rollouts={}),
        before={},
        lag_max=0,
        wall_s=0.0,
        sizes={},
    )
    snapshot.commit(part, state)
    checkpoints.prune(run_dir, 1)
    return part


def each_death(folder: Path, prepare: Callable[[Path], Callable[[], None]]) -> None:
    """Do what `prepare` returns in one directory after the other, until it is done undisturbed."""
    number, status = 0, -1
    while status != 0:
        number += 1
        directory = folder / f"{number:03d}"
        (directory / "shm").mkdir(parents=True)
        child = os.fork()
        if not child:
            try:
                act = prepare(directory)
                die_at(number, directory)
                act()
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), f"{directory}: {status}"


def die_at(number: int, directory: Path) -> None:
    """Have this process killed where it is about to do the `number`-th thing below `directory`."""
    seen = 0

    def watch(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in EVENTS:
            return
        path = str(args[0])
        if event in ("os.remove", "os.rmdir") and args[1] != -1:  # in a directory that is open
            path = f"{os.readlink(f'/proc/self/fd/{args[1]}')}/{path}"
        if not path.startswith(str(directory)):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def save(model: Path, folder: Path) -> None:
    """Killed while the checkpoint of step 2 is written; that of step 1 is complete."""
    torch.set_num_threads(1)  # no threads of arithmetic that a fork would lose
    base = folder / "base"
    (base / "shm").mkdir(parents=True)
    trainer = make_trainer(model, base)
    states = {}
    for step in (1, 2):
        trainer.train(decode_batch((folder / f"batch_{step}").read_bytes()))
        trainer.published(step)
        states[step] = state_of(trainer)
        if step == 1:
            complete(base, trainer)
    torch.save(states, folder / "states.pt")

    def prepare(directory: Path) -> Callable[[], None]:
        shutil.copytree(base, directory, dirs_exist_ok=True)
        return lambda: void(complete(directory, trainer))

    each_death(folder, prepare)


def publish(model: Path, folder: Path) -> None:
    """Killed while versions 2 to 4 are published; what was announced is in a file of its own."""
    torch.set_num_threads(1)
    (folder / "base").mkdir()
    trainer = make_trainer(model, folder / "base")
    versions = {1: weights(trainer)}
    steps = {1: {name: one.bfloat16() for name, one in versions[1].items()}}
    for version in (2, 3, 4, 5):
        steps[version] = {name: one + version for name, one in steps[1].items()}
    torch.save(steps, folder / "versions.pt")

    def prepare(directory: Path) -> Callable[[], None]:
        log = directory / "version.json"
        shm = str(directory / "shm")
        own = Overlapping(
            Publisher(directory=shm, fallback=directory / "weights", run_id=RUN_ID, log=log)
        )
        announced = os.open(folder / f"announced_{directory.name}", os.O_CREAT | os.O_WRONLY)

        def act(first: int = 2) -> None:
            for version in range(first, 5):
                own.publish(steps[version], version=version, step=version)
                manifest = own.published(version)
                os.write(announced, msgspec.json.encode(manifest) + b"\n")

        own.publish(steps[1], version=1, step=1)
        os.write(announced, msgspec.json.encode(own.published(1)) + b"\n")
        return act

    each_death(folder, prepare)


def policy(model: Path, folder: Path) -> None:
    """Killed while a warm start's policy is written over another's, of other sizes and words."""
    torch.set_num_threads(1)
    made: list[tuple[PreTrainedModel, ChatTokens]] = []
    for words, hidden in (("one", 32), ("two", 64)):
        recipe = PolicyRecipe(hidden=hidden, layers=1, heads=2, kv_heads=1, ffn=32, vocabulary=512)
        tokenizer = make_tokenizer([words], 512)
        made.append((make_model(recipe, tokenizer), ChatTokens(tokenizer)))

    def prepare(directory: Path) -> Callable[[], None]:
        write(*made[0], directory / "out", metadata={})
        return lambda: write(*made[1], directory / "out", metadata={})

    write(*made[0], folder / "old", metadata={})
    each_death(folder, prepare)


def void(_: object) -> None:
    return None


if __name__ == "__main__":
    what, model_path, where = sys.argv[1:]
    {"save": save, "publish": publish, "policy": policy}[what](Path(model_path), Path(where))
