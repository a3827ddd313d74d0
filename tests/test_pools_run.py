"""A pool comes to a real run, is replaced and goes: real processes, real weights, code written meanwhile."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from envpool import sandbox
from rollout import audit, pools
from rollout.ledger import GroupState
from rollout.processes import is_alive, read_pids
from rollout.status import PoolInfo
from tests.test_readme import block
from tests.waiting import wait

ROOT = Path(__file__).parent.parent
STEPS = 400
# Four of five tasks: it must be trained on before the run ends.
WEIGHT = "4"


def command(*words: str) -> str:
    """What a command of launch.py printed."""
    done = subprocess.run(
        [sys.executable, "launch.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trained_on(run_dir: Path, version: str) -> bool:
    rows = audit.rows(run_dir)
    return any(row.pool_version == version and row.state is GroupState.TRAINED for row in rows)


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_pool_is_added_replaced_and_removed_while_it_trains(tmp_path: Path) -> None:
    run_dir, code = tmp_path / "run", tmp_path / "code"
    code.mkdir()
    settings = [
        f"learner.steps={STEPS}",
        f"run.imports=['{code}']",
        "eval.before=false",
        "eval.after=false",
        "eval.sets={}",
        "logging.wandb=off",
        "checkpoint.every=0",
    ]
    at = ("--run", str(run_dir))
    with subprocess.Popen(
        [sys.executable, "launch.py", f"run.dir={run_dir}", *settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            metrics = run_dir / "metrics.jsonl"
            wait(process, lambda: metrics.exists() and metrics.stat().st_size > 0)
            versions = []
            # Nobody could have imported it when the run began.
            for action, question in (("add", "What is"), ("replace", "Find")):
                text = block("python").replace("What is the last number?", f"{question} the last.")
                (code / "late_pool.py").write_text(text)
                # A module of that name, then the file itself.
                source = "late_pool:envs" if action == "add" else str(code / "late_pool.py")
                # The second one is trusted by nobody, where there is a sandbox for it.
                is_trusted = action == "add" or bool(sandbox.lacking())
                words = (action, "late", source, f"trusted={str(is_trusted).lower()}")
                told = command("pool", *words, "--weight", WEIGHT, "--json", *at)
                answer = msgspec.json.decode(told, type=PoolInfo)
                assert answer.state == "live" and answer.envs == ["last_number"]
                assert bool(answer.layers) is not is_trusted
                versions.append(answer.version)
                wait(process, lambda: trained_on(run_dir, versions[-1]))
            first, second = versions
            assert first != second
            command("pool", "remove", "late", *at)

            def states() -> dict[str, str]:
                told = command("pool", "list", "--json", *at)
                found = msgspec.json.decode(told, type=list[PoolInfo])
                return {info.version: str(info.state) for info in found if info.name == "late"}

            wait(process, lambda: set(states().values()) == {"removed"})
            saved = command("control", "checkpoint", *at)
            assert (Path(saved.rsplit(": ", 1)[1].strip()) / "DONE").exists()
            command("control", "pause", *at)
            status = command("control", "status", *at)
            assert "paused" in status
        finally:
            process.terminate()
            output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output[-3000:]
    found = pools.read(run_dir)
    assert found is not None and {record.name for record in found.pools} == {"tiny", "unseen"}
    rows = list(audit.rows(run_dir))
    prompts = {row.pool_version: row.prompt for row in rows if row.pool == "late" and row.prompt}
    assert prompts[first].startswith("What is") and prompts[second].startswith("Find")
    assert not [row.error for row in rows if row.stop.is_fault]
    assert "late_pool" not in (run_dir / "config.json").read_text()
    assert [process.name for process in read_pids(run_dir) if is_alive(process)] == []
