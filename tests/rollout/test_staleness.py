"""The staleness study: lags are exact, and the grid is resumed cell by cell."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from configs.load import ConfigError, load
from rollout.bench import exact_lag, staleness
from rollout.bench.exact_lag import ExactLag, Outcome
from rollout.bench.staleness import Cell, Done
from rollout.run import Checked, check
from rollout.types import StepReport, TrainBatch

ROOT = Path(__file__).parents[2]
SMALL = (
    "rollout.groups_per_step=2",
    "rollout.group_size=8",
    "eval.sets.fresh.count=5",
    "logging.wandb=off",
)


@pytest.fixture(scope="module")
def checked() -> Checked:
    return check(load(["local.toml", *SMALL, "rollout.max_lag=2", "learner.lr=1e-5"]))


async def test_tokens_are_as_old_as_the_lag_says(
    checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = await ExactLag.start(checked, tmp_path)
    trainer: Any = training._trainer
    seen: list[tuple[int, set[int]]] = []
    train = trainer.train

    def watched(batch: TrainBatch) -> StepReport:
        rows = [row for group in batch.groups for one in group.rollouts for row in one.rows]
        versions = {span.version for row in rows for span in row.spans}
        seen.append((batch.version, versions))
        return train(batch)

    monkeypatch.setattr(trainer, "train", watched)
    tasks = checked.evaluation_sets["fresh"]
    try:
        outcome = await training.train(5, tasks)
    finally:
        await training.close()
    # The initial weights sample what the first updates wait for; then each is two versions old.
    assert seen == [(0, {0}), (1, {0}), (2, {0}), (3, {1}), (4, {2})]
    assert outcome.updates == 5 and len(outcome.rewards) == 5
    assert len(outcome.metrics["loss/total"]) == 5


async def test_training_ends_where_nothing_teaches(
    checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_lag, "MAX_WAVES", 1)
    training = await ExactLag.start(checked, tmp_path)

    async def none() -> tuple[list[Any], float]:
        await asyncio.sleep(0)
        return [], 0.25

    monkeypatch.setattr(training, "_batch", none)
    try:
        outcome = await training.train(5, checked.evaluation_sets["fresh"][:1])
    finally:
        await training.close()
    assert outcome.updates == 0 and outcome.rewards == []


def make_outcome(after: float, *, best: float = 0.5) -> Outcome:
    return Outcome(
        before=0.1,
        after=after,
        best=best,
        last=after,
        updates=2,
        wall_s=1.0,
        rewards=[],
        metrics={},
    )


def make_done(variant: str, after: float, *, lag: int = 0, seed: int = 0, lr: float = 2e-4) -> Done:
    cell = Cell(variant=variant, lag=lag, lr=lr, seed=seed, updates=2)
    return Done(cell=cell, outcome=make_outcome(after))


def test_a_training_that_ends_below_half_of_its_best_has_collapsed() -> None:
    assert make_outcome(0.24).is_collapsed
    assert not make_outcome(0.25).is_collapsed
    assert make_outcome(0.04, best=0.05).is_collapsed  # less than half of what it began with


def test_the_table_has_a_mean_over_seeds_and_counts_collapses() -> None:
    cells = [
        make_done("clip", 0.6),
        make_done("clip", 0.4, seed=1),
        make_done("clip", 0.5, lag=4),
        make_done("none", 0.1),
        make_done("clip", 0.7, lr=6e-4),
    ]
    lines = staleness.markdown(cells).splitlines()
    assert lines == [
        "Learning rate 0.0002",
        "",
        "| correction | lag 0 | lag 4 |",
        "|---|---|---|",
        "| clip | 0.50 ± 0.10 | 0.50 |",
        "| none | 0.10, 1 of 1 collapsed |  |",
        "",
        "Learning rate 0.0006",
        "",
        "| correction | lag 0 |",
        "|---|---|",
        "| clip | 0.70 |",
    ]


def test_a_second_call_trains_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Cell] = []

    def train(cells: list[Cell], *, jobs: int) -> list[Done]:
        trained.extend(cells)
        return [Done(cell=cell, outcome=make_outcome(0.5)) for cell in cells]

    monkeypatch.setattr(staleness, "_train", train)
    words = [
        "--out",
        str(tmp_path),
        "--seeds",
        "0",
        "--lags",
        "0",
        "--lrs",
        "6e-4",
        "--updates",
        "3",
    ]
    assert staleness.main([*words, "--variants", "clip"]) == 0
    file = tmp_path / "cells.jsonl"
    file.write_bytes(file.read_bytes() + b'{"cell": {"variant"')  # killed while writing
    assert staleness.main([*words, "--variants", "clip;none"]) == 0
    assert [cell.variant for cell in trained] == ["clip", "none"]
    assert [done.cell.variant for done in staleness.read(file)] == ["clip", "none"]
    assert "1 of 2 cells" in capsys.readouterr().err
    assert "| none | 0.50 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "staleness.svg").exists()


def has_environments(process: psutil.Process) -> bool:
    try:
        is_spawned = any("spawn_main" in word for word in process.cmdline())
        return is_spawned and bool(process.children())
    except psutil.NoSuchProcess:  # a short one
        return False


def test_trainings_end_with_a_study_that_is_killed() -> None:
    command = [sys.executable, "launch.py", "bench", "staleness", "--jobs", "1"]
    study = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    processes: list[psutil.Process] = []
    try:
        # A training is under way.
        while not any(map(has_environments, processes)):
            assert study.poll() is None
            processes = study.children(recursive=True)
    finally:
        study.kill()
    study.wait(10)
    assert not psutil.wait_procs(processes, timeout=20)[1]


@pytest.mark.parametrize("variant", staleness.VARIANTS)
def test_each_correction_is_one_that_a_recipe_may_name(variant: str) -> None:
    checked = staleness._check(Cell(variant=variant, lag=8, lr=6e-4, seed=1, updates=1))
    assert checked.config.rollout.max_lag == 8 and checked.config.run.seed == 1
    assert variant.startswith(checked.config.learner.loss.correction)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--variants", "clip;klip"], "'klip' is none of: clip;"),
        (["--lags", "-1"], "--lags '-1'"),
        (["--lrs", "fast"], "--lrs 'fast'"),
        (["--updates", "-3"], "--updates and --jobs: 1 or more"),
        (["learner.lrr=1"], "lrr"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        staleness.main(words)


def test_lines_are_read_as_they_were_written() -> None:
    done = make_done("tis", 0.3)
    assert msgspec.json.decode(msgspec.json.encode(done), type=Done) == done
