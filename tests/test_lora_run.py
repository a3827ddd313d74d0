"""A run that trains adapters, on real vLLM: they alone are new weights, also after it was stopped."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from rollout.processes import is_alive, read_pids
from tests.engines import needs_vllm

ROOT = Path(__file__).parent.parent

pytestmark = [*needs_vllm, pytest.mark.ray]


def launch(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.timeout(650)
def test_engines_sample_with_the_adapters_that_are_trained(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    launch(
        "configs/local_vllm.toml",
        f"run.dir={run_dir}",
        *("learner.steps=4", "learner.lr=5e-3", "learner.warmup_steps=0", "checkpoint.every=2"),
        *("learner.lora.rank=6", "engine.vllm.lora_rank=8", "weights.transport=relay"),
        *("eval.before=false", "eval.after=false", "logging.wandb=off"),
    )
    launch("--resume", str(run_dir), "learner.steps=8")
    lines = [msgspec.json.decode(x) for x in (run_dir / "metrics.jsonl").read_bytes().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, 9)]
    # Tokens of other weights are told from those of the learner's own.
    assert max(line["kl/engine_mean"] for line in lines) > 1e-3
    gaps = {line["step"]: line.get("kl/gap_lag0_mean", 0.0) for line in lines}
    assert max(gaps.values()) < 1e-4
    assert max(gaps[step] for step in range(2, 5)) > 0.0, "no token was sampled by an adapter"
    assert max(gaps[step] for step in range(5, 9)) > 0.0, "nor after it went on"
    assert [process.name for process in read_pids(run_dir) if is_alive(process)] == []
