"""A warm start that was killed goes on to the very weights that it would have had."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from configs.load import ConfigError
from configs.sft import MessagesRow, SftRecipe
from learner import cli
from rollout import checkpoints
from synth.traces import generate

ROOT = Path(__file__).parents[2]

_SETTINGS = [
    "traces.source=envpool.envs:basics",
    'traces.envs=["sum_list", "find_max"]',
    "traces.count=80",
    "policy.hidden=32",
    "policy.layers=2",
    "batch_rows=4",
    "epochs=2",
    "held_out=0.1",
    # Several micro-batches a step.
    "micro_batch_tokens=400",
    "checkpoint.every=5",
]


def traces(recipe: SftRecipe) -> list[MessagesRow]:
    return generate(recipe.traces)


@pytest.mark.parametrize("trained", ["all", "adapters"])
def test_a_killed_warm_start_goes_on_to_the_same_weights(tmp_path: Path, trained: str) -> None:
    more: list[str] = []
    if trained == "adapters":
        base = tmp_path / "base"
        assert (
            cli.sft([*_SETTINGS, "checkpoint.every=0", f"out={base}", "max_steps=1"], traces) == 0
        )
        more = [f"base={base}", "lora.rank=2"]
    settings = [*_SETTINGS, *more]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "launch.py", "sft", *settings, f"out={killed}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while checkpoints.latest(killed / "sft") is None:
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert not (killed / "config.json").exists(), "it ended before it could be killed"
    with pytest.raises(ConfigError, match=r"sft --resume .* goes on with what was stopped"):
        cli.sft([*settings, f"out={killed}"], _nothing)
    assert cli.sft(["--resume", str(killed)], _nothing) == 0
    assert cli.sft([*settings, "checkpoint.every=0", f"out={whole}"], traces) == 0
    one, other = (load_file(path / "model.safetensors") for path in (killed, whole))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    # What is kept is bounded, and a policy that is made is not made again.
    assert len(list((killed / "sft" / "checkpoints").iterdir())) == 2
    with pytest.raises(ConfigError, match="has its policy already"):
        cli.sft(["--resume", str(killed)], _nothing)


def test_nothing_to_go_on_with_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to go on with.*checkpoint\.every"):
        cli.sft(["--resume", str(tmp_path)], _nothing)
    with pytest.raises(ConfigError, match="and nothing else"):
        cli.sft(["--resume", str(tmp_path), "lr=1"], _nothing)


def _nothing(recipe: SftRecipe) -> list[MessagesRow]:
    raise AssertionError("demonstrations are kept: none is made again")
