"""The benchmark runs and says what it promises."""

import json

import pytest

from envpool import bench


def test_benchmark_prints_ratios(capfd: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--json", "--sessions", "2", "--steps", "5"]) == 0
    numbers = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert set(numbers["ratios"]) == {"pool_vs_socketpairs", "pool_vs_async_vector_env"}
    assert all(value > 0 for value in numbers["steps_per_s"].values())
