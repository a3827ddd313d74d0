"""The real pipeline: real processes, real weights, real environments, on this machine's CPU."""

import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rollout import audit
from rollout.ledger import GroupState
from rollout.processes import is_alive, read_pids

ROOT = Path(__file__).parent.parent

# Short evaluation: what it measures is tested elsewhere.
QUICK_EVAL = [
    *(f"eval.sets.{name}.count=8" for name in ("fresh", "harder", "held_out", "unseen")),
    "logging.wandb=off",
    # Rewards of different steps are compared: the mixture of tasks must stay.
    "rollout.draw=uniform",
]


def launch(run_dir: Path, *settings: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch.py", f"run.dir={run_dir}", *QUICK_EVAL, *settings]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line) for line in lines]


def gain(run_dir: Path) -> float:
    """Mean reward of the last ten steps minus that of the first ten."""
    rewards = [line["reward/all_mean"] for line in metrics(run_dir)]
    return sum(rewards[-10:]) / 10 - sum(rewards[:10]) / 10


def stratified_gain(run_dir: Path) -> float:
    """Mean reward of the second half of all rollouts minus the first's, each environment alike.

    Half a run, because ten steps of an unchanging policy differ by more than .05 now and then.
    """
    rows = [row for row in audit.rows(run_dir) if row.reward is not None]
    halves: list[dict[str, list[float]]] = [{}, {}]
    for index, row in enumerate(rows):
        half = halves[index >= len(rows) // 2]
        half.setdefault(row.env, []).append(row.reward or 0.0)
    gains = [
        statistics.fmean(halves[1][env]) - statistics.fmean(halves[0][env]) for env in halves[0]
    ]
    return statistics.fmean(gains)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short asynchronous run that the tests below look at."""
    path = tmp_path_factory.mktemp("run") / "lag2"
    done = launch(path, "learner.steps=40", "checkpoint.every=20", timeout_s=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return path


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_policy_learns(run_dir: Path) -> None:
    assert len(metrics(run_dir)) == 40
    assert gain(run_dir) >= 0.08


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_lag_is_used_and_bounded(run_dir: Path) -> None:
    trained = [row for row in audit.rows(run_dir) if row.lag is not None]
    lags = [row.lag for row in trained if row.lag is not None]
    assert max(lags) <= 2
    assert sum(lag >= 1 for lag in lags) / len(lags) >= 0.2
    assert sum(len(set(row.versions)) > 1 for row in trained) >= 50


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_engine_and_learner_work_at_the_same_time(run_dir: Path) -> None:
    share = audit.busy_share(run_dir, after_step=1)
    # Taking turns would be 0 of this: nearly whenever the less busy one computes, the other does, too.
    assert share.both >= 0.8 * min(share.engine, share.learner) > 0.1


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_run_directory_is_complete(run_dir: Path) -> None:
    summary = msgspec.json.decode((run_dir / "summary.json").read_bytes())
    assert summary["steps"] == 40
    assert summary["lag_max"] <= 2
    assert summary["ledger_balanced"] is True
    recomputed = audit.recompute(run_dir)
    assert msgspec.to_builtins(recomputed) == summary["ledger"]
    config = msgspec.json.decode((run_dir / "config.json").read_bytes())
    assert recomputed.groups["trained"] == 40 * config["rollout"]["groups_per_step"]
    for name in ("fresh", "harder", "held_out", "unseen"):
        for mode in ("sampled", "greedy"):
            for when in ("before", "after"):
                score = summary["eval"][name][mode][when]
                assert score["count"] + score["faults"] == 8
                assert score["low"] <= score["mean"] <= score["high"]
    assert (run_dir / "logs" / "launch.log").exists()
    for name in ("actor-0", "learner"):
        assert "ready: " in (run_dir / "logs" / f"{name}.log").read_text()
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["step_20", "step_40"]
    assert (run_dir / "report.html").exists() and (run_dir / "report" / "success.png").exists()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_readme_explains_every_metric(run_dir: Path) -> None:
    table = (ROOT / "README.md").read_text().partition("## Metrics")[2].partition("</details>")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = [key for cell in cells for key in re.findall(r"`(.*?)`", cell)]
    patterns = {key: re.sub(r"<\w+>", r"[\\w-]+", key) for key in listed}
    keys = {key for line in metrics(run_dir) for key in line}
    explained = {key for key in keys if any(re.fullmatch(p, key) for p in patterns.values())}
    assert keys - explained == set()
    unused = {key for key, p in patterns.items() if not any(re.fullmatch(p, k) for k in keys)}
    # With learner.loss.kl_coef alone, which takes another copy of the model.
    unused.discard("loss/kl_ref")
    assert {key for key in unused if not key.startswith("eval/")} == set()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_rows_name_what_they_ran(run_dir: Path) -> None:
    config = msgspec.json.decode((run_dir / "config.json").read_bytes())
    for row in audit.rows(run_dir):
        assert row.pool in config["pools"] and len(row.pool_version) == 16
        assert row.task_id.startswith(f"{row.pool}/{row.env}/")
        if row.state is GroupState.TRAINED and row.reward is not None:
            # A reply may be empty: sampled policies do that, and it is a bad call.
            assert row.turns and all(turn.action or turn.is_bad_call for turn in row.turns)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_exported_checkpoint_loads_with_transformers(run_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = run_dir / "checkpoints" / "step_40" / "hf"
    model = AutoModelForCausalLM.from_pretrained(path)
    shipped = AutoModelForCausalLM.from_pretrained(ROOT / "configs" / "tiny_policy" / "policy")
    assert AutoTokenizer.from_pretrained(path).chat_template
    assert not model.lm_head.weight.equal(shipped.lm_head.weight)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_no_process_is_left(run_dir: Path) -> None:
    recorded = read_pids(run_dir)
    assert {"launch", "actor-0", "learner", "actor-0/zygote-tiny"} <= {p.name for p in recorded}
    assert [process.name for process in recorded if is_alive(process)] == []


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_max_lag_0_takes_turns(tmp_path: Path) -> None:
    run_dir = tmp_path / "lag0"
    done = launch(
        run_dir,
        "learner.steps=8",
        "rollout.max_lag=0",
        "eval.before=false",
        "eval.after=false",
        timeout_s=200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert audit.busy_share(run_dir).both < 0.05
    assert {row.lag for row in audit.rows(run_dir) if row.lag is not None} == {0}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_a_learning_rate_nothing_is_learned(tmp_path: Path) -> None:
    run_dir = tmp_path / "lr0"
    done = launch(run_dir, "learner.steps=60", "learner.lr=0", timeout_s=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert stratified_gain(run_dir) < 0.05
