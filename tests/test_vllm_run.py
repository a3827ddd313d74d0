"""The laptop's run on real vLLM: it learns, with weights that change under running requests."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from rollout import audit
from rollout.processes import is_alive, read_pids
from tests.engines import needs_vllm

ROOT = Path(__file__).parent.parent

pytestmark = [*needs_vllm, pytest.mark.ray]

STEPS = 20


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short run that the tests below look at."""
    path = tmp_path_factory.mktemp("run") / "vllm"
    command = [
        *(sys.executable, "launch.py", "configs/local_vllm.toml", f"run.dir={path}"),
        f"learner.steps={STEPS}",
        # What success is measured by is tested elsewhere.
        *(f"eval.sets.{name}.count=4" for name in ("fresh", "harder", "held_out", "unseen")),
        *("eval.before=false", "logging.wandb=off", "rollout.draw=uniform"),
        "weights.transport=relay",  # as an engine on another node gets them
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return path


def metric(run_dir: Path, key: str) -> list[float]:
    """Its values, of the steps that have one."""
    lines = [msgspec.json.decode(x) for x in (run_dir / "metrics.jsonl").read_bytes().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.mark.timeout(450)
def test_the_policy_learns_on_vllm(run_dir: Path) -> None:
    rewards = metric(run_dir, "reward/all_mean")
    assert len(rewards) == STEPS
    half = STEPS // 2
    assert sum(rewards[half:]) / half - sum(rewards[:half]) / half >= 0.12, rewards


@pytest.mark.timeout(450)
def test_its_log_probs_are_the_learners(run_dir: Path) -> None:
    gaps = metric(run_dir, "kl/gap_lag0_mean")
    assert gaps and max(gaps) < 1e-4


@pytest.mark.timeout(450)
def test_weights_changed_under_running_requests(run_dir: Path) -> None:
    summary = msgspec.json.decode((run_dir / "summary.json").read_bytes())
    assert summary["ledger_balanced"] is True and summary["lag_max"] <= 2
    trained = [row for row in audit.rows(run_dir) if row.lag is not None]
    assert sum(len(set(row.versions)) > 1 for row in trained) >= 20
    assert {row.reward is None for row in trained} == {False}


@pytest.mark.timeout(450)
def test_no_process_of_vllm_is_left(run_dir: Path) -> None:
    recorded = read_pids(run_dir)
    assert [process.name for process in recorded if is_alive(process)] == []
