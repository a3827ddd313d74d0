"""The benchmarks of a recipe: what they make of a run's files, and real runs."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

import launch
from configs.load import ConfigError, load
from rollout import audit
from rollout.bench import actor_loop, cost, curriculum, engine, learning, overlap, runs
from rollout.files import RolloutRow
from rollout.ledger import ENDS, LedgerCounts
from rollout.processes import describe, write_pids
from rollout.scores import score
from rollout.summary import BeforeAfter, Difference, Summary
from tests.fakes import make_rollout
from tests.recipes import BASICS

SMALL = [f"eval.sets.{name}.count=8" for name in ("fresh", "harder", "held_out", "unseen")]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_pace_leaves_the_warm_up_out(tmp_path: Path) -> None:
    """Two steps count: 1 s and 3 s; the engine computes in 3 of their 4 s, the learner in 2."""
    steps = [
        {
            "step": step,
            "time/step_s": seconds,
            "perf/tokens_per_s": 100.0 * step,
            "lag/mean": 1.5,
            "lag/max": 1,
            "reward/all_mean": 0.5,
        }
        for step, seconds in enumerate([9.0] * overlap.WARMUP_STEPS + [1.0, 3.0], start=1)
    ]
    write_lines(tmp_path / "metrics.jsonl", steps)
    begin = 50.0
    events = [
        {"kind": "mark", "name": "train_begin", "at_s": 0.0},
        {"kind": "busy", "who": "actor-0", "start_s": 0.0, "end_s": begin + 3.0},
        {"kind": "trained", "step": overlap.WARMUP_STEPS, "at_s": begin, "groups": []},
        {"kind": "busy", "who": "learner", "start_s": begin + 2.0, "end_s": begin + 4.0},
        {"kind": "mark", "name": "train_end", "at_s": begin + 4.0},
    ]
    write_lines(tmp_path / "events.jsonl", events)
    pace = overlap.measure(tmp_path)
    assert (pace.step_s, pace.mean_step_s, pace.bound_s) == (2.0, 2.0, 1.5)
    assert pace.both == pytest.approx(0.25)
    assert pace.tokens_per_s == pytest.approx(650.0)
    assert (pace.lag_mean, pace.lag_max, pace.reward) == (1.5, 1, 0.5)


def make_pace(**values: Any) -> overlap.Pace:
    fields: dict[str, Any] = {
        "step_s": 1.0,
        "mean_step_s": 2.0,
        "bound_s": 0.5,
        "both": 0.25,
        "tokens_per_s": 100.0,
        "lag_mean": 1.0,
        "lag_max": 2,
        "reward": 0.75,
    }
    return overlap.Pace(**fields | values)


def test_synchronous_over_asynchronous_is_the_speedup() -> None:
    """Of mean steps: a step that is slow now and then counts. Each run has its own bound."""
    paces = {
        "async": make_pace(),
        "sync": make_pace(step_s=9.0, mean_step_s=3.0, bound_s=9.0, reward=0.5),
    }
    numbers = overlap.summary(paces)
    assert numbers["speedup"] == 1.5
    assert (numbers["step_over_bound"], numbers["mean_step_over_bound"]) == (2.0, 4.0)
    assert (numbers["lag_mean"], numbers["lag_max"]) == (1.0, 2)
    assert numbers["reward"] == {"async": 0.75, "sync": 0.5}


def test_the_two_runs_differ_in_lag_alone_whatever_else_is_asked_for() -> None:
    asked = ["rollout.max_lag=4", "learner.lr=1e-5", "checkpoint.every=1", "eval.every=2"]
    runs_of = {name: load(words) for name, words in overlap.runs_of(asked, steps=10).items()}
    ours, turns = runs_of["async"], runs_of["sync"]
    assert (ours.rollout.max_lag, turns.rollout.max_lag) == (4, 0)
    same = msgspec.structs.replace(turns.rollout, max_lag=4)
    assert msgspec.structs.replace(turns, rollout=same) == ours
    assert (ours.learner.lr, ours.learner.steps) == (1e-5, 10)
    # A benchmark of speed: nothing but training.
    assert (ours.checkpoint.every, ours.eval.every, ours.eval.before, ours.eval.after) == (
        (0, 0, False, False)
    )


def test_the_engines_ratio_is_ours_over_theirs() -> None:
    rates = {1: engine.Rate(local=1.0, generate=1.0), 8: engine.Rate(local=6.0, generate=2.0)}
    results = engine.Results(rates=rates)
    assert engine.summary(results)["ratios"] == {"local_over_hf_generate": 3.0}
    results.shares["vllm"] = actor_loop.Share(actor=9.0, raw=10.0)
    results.walls = {8: {"local": 2.0, "vllm": 3.0}}
    found = engine.summary(results)
    assert found["ratios"]["actor_over_raw_vllm"] == 0.9
    assert found["vllm_over_local"] == {"8": 1.5}


def make_summary(before: float, after: float, change: float) -> Summary:
    zeros = {state.value: 0 for state in ENDS}
    pair = BeforeAfter(
        before=score([make_rollout("a", reward=before)]),
        after=score([make_rollout("a", reward=after)]),
        difference=Difference(mean=change, low=change - 0.1, high=change + 0.1, count=9),
    )
    lone = BeforeAfter(before=pair.before)
    return Summary(
        eval={"fresh": {"sampled": pair}, "once": {"sampled": lone}},
        steps=1,
        wall_s=1.0,
        lag_max=0,
        ledger=LedgerCounts(groups=zeros, rollouts=zeros),
        ledger_balanced=True,
    )


def test_seeds_are_averaged_and_what_has_no_change_is_left_out() -> None:
    found = learning.means([make_summary(0.0, 1.0, 0.4), make_summary(1.0, 1.0, 0.2)])
    assert set(found) == {"fresh"}
    numbers = found["fresh"]["sampled"]
    assert numbers["before"] == [0.0, 1.0]
    assert numbers["after"] == [1.0, 1.0]
    assert numbers["change"]["mean"] == pytest.approx(0.3)
    assert [change["mean"] for change in numbers["by_seed"]] == [0.4, 0.2]


def test_interval_over_seeds_is_students() -> None:
    """Of 1, 2, 3: standard error 1/sqrt(3), and t of two degrees of freedom is 4.303."""
    found = learning.over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.303 / 3**0.5)
    assert found.mean - found.low == pytest.approx(4.303 / 3**0.5)


@pytest.mark.parametrize("text", ["0", "0,0", "0,00", "1,x", "", "0,1,2,3,4,5,6,7,8,9,10"])
def test_odd_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        learning.main(["--seeds", text])


def test_a_simulated_policy_is_the_same_for_a_seed_and_learns_of_signal_alone() -> None:
    rollout = load([BASICS, "rollout.draw=adaptive"]).rollout
    one = curriculum.play(rollout, seed=3, max_groups=200)
    assert one == curriculum.play(rollout, seed=3, max_groups=200)
    assert one.groups == 200 and one.steps == pytest.approx(one.signal_frac * 200 / 4, abs=1)
    levels = curriculum.Levels(0)
    learner = curriculum.Learner(levels)
    before = learner.mean_rate()
    learner.train("env_0", [1.0, 1.0])
    assert learner.mean_rate() == before
    hard = learner.rate("env_39", next(iter(levels.offsets["env_39"])))
    learner.train("env_0", [1.0, 0.0])
    assert learner.mean_rate() > before
    assert learner.rate("env_39", next(iter(levels.offsets["env_39"]))) > hard


def test_adaptive_plays_fewer_groups_without_signal(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "curriculum", "--seeds", "0,1", "--groups", "1200", "--json"]
    assert launch.main(arguments) == 0
    draws = json.loads(capsys.readouterr().out.splitlines()[-1])["draws"]
    assert set(draws) == {"uniform", "band", "adaptive", "signal"}
    for one, other in zip(draws["adaptive"], draws["uniform"], strict=True):
        assert one["signal_frac"] > other["signal_frac"] + 0.1
        assert one["rate"] > other["rate"]


@pytest.mark.parametrize("words", [["--seeds", "x"], ["--groups", "0"], ["rollout.explore=2"]])
def test_odd_arguments_of_the_simulation_are_refused(words: list[str]) -> None:
    assert launch.main(["bench", "curriculum", *words]) == 2


def test_cost_counts_the_cpu_of_a_process_where_it_belongs(tmp_path: Path) -> None:
    """This process is the driver; a busy child of no name is Ray's."""
    (tmp_path / "rollouts").mkdir()
    write_pids(tmp_path, [describe("launch")])
    watch = cost.Watch(tmp_path)
    pid = describe("launch").pid
    for _ in range(cost.WARMUP_STEPS):
        watch(pid, "step 1/9 | ...")
    assert watch.first is not None and watch.first is watch.last
    with pytest.raises(runs.RunError, match="--steps"):
        watch.per_rollout_s()
    begun = time.process_time()
    while time.process_time() - begun < 0.3:
        pass
    write_lines(tmp_path / "rollouts/part_0000.jsonl", [make_row(number) for number in range(2)])
    watch(pid, "not a step")
    assert watch.first is watch.last
    watch(pid, "step 2/9 | ...")
    per_rollout_s = watch.per_rollout_s()
    assert per_rollout_s[cost.COORDINATOR] == pytest.approx(0.15, abs=0.1)


def make_row(number: int) -> dict[str, Any]:
    row = RolloutRow.of(make_rollout(f"g{number}", reward=1.0), config={}, group_size=1, step=1)
    return msgspec.to_builtins(row)


def test_serialization_takes_more_for_more(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    write_lines(tmp_path / "rollouts/part_0000.jsonl", [make_row(number) for number in range(50)])
    rows = list(audit.rows(tmp_path))
    assert 0 < cost.serialization_per_rollout_s(rows) < 0.1


def test_a_wrong_setting_is_exit_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert launch.main(["bench", "cost", "--keep", str(tmp_path / "run"), "learner.lrr=1"]) == 2
    assert "did you mean lr?" in capsys.readouterr().err


def test_a_failed_run_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    path = f"model.path={tmp_path / 'model'}"
    assert launch.main(["bench", "cost", "--keep", str(tmp_path / "run"), path]) == 1
    assert "failed" in capsys.readouterr().err


def test_a_run_is_followed_line_by_line(tmp_path: Path) -> None:
    seen: list[str] = []
    runs.play(tmp_path / "run", ["--dry-run"], lambda pid, line: seen.append(line))
    assert [line.split(":")[0] for line in seen] == ["resolved configuration"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["overlap", "--steps", "10"], {"speedup", "step_over_bound", "lag_max", "reward"}),
        (["sync", "--sizes", "1"], {"ratios", "seconds", "skipped"}),
        (["cost", "--steps", "10"], {"cpu_ms_per_rollout", "startup_s"}),
        (["learning", "--seeds", "0,1", "learner.steps=3", *SMALL], {"seeds", "sets"}),
    ],
)
def test_benchmarks_run(arguments: list[str], keys: set[str]) -> None:
    # In a process of its own: a benchmark may block its event loop, which tests watch here.
    command = [sys.executable, str(runs.PROGRAM), "bench", *arguments, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    numbers = json.loads(run.stdout.splitlines()[-1])
    assert keys <= set(numbers)
    assert numbers["benchmark"] == arguments[0]
