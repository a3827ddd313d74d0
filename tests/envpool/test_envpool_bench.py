"""The benchmark runs, measures every system, and says what it promises."""

import json
import os

import pytest

from envpool.bench import cli
from envpool.bench.processes import descendants
from envpool.bench.report import COMPARED

KEYS = {
    "bare_socketpair",
    "async_vector_env",
    "async_vector_env_slow",
    "ray_actors",
    "serialise_fork_step",
    "process_pool",
}


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_benchmark_compares_with_every_peer(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--json", "--quick"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert set(found["ratios"]) == KEYS
    assert all(value > 0 for value in found["ratios"].values())
    assert found["recovery"]["killed"] == 4 and found["recovery"]["wrong_transcripts"] == 0
    for one in found["systems"]:
        assert one["skipped"] or one["steps_per_s"] > 0, one["name"]
        assert f"{one['name']}, {one['size']} sessions" in err
    assert not descendants(os.getpid())


def test_benchmark_measures_what_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    names = ["bare_socketpair", "sandbox"]
    assert cli.main(["--json", "--quick", "--only", ",".join(names), "--rounds", "2"]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [(one["name"], one["rounds"]) for one in found["systems"]] == [(n, 2) for n in names]
    assert found["ratios"]["bare_socketpair"] > 0 and found["ratios"]["ray_actors"] is None
    assert "recovery" not in found


def test_benchmark_refuses_what_it_does_not_know(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--only", "sandbox,dandbox"])
    assert "no system 'dandbox'" in capfd.readouterr().err


def test_what_is_compared_is_measured() -> None:
    measured = {one.name for one in cli.compared_systems(cli.FULL)}
    for _, own, peers in COMPARED:
        assert {own, *peers} <= measured
