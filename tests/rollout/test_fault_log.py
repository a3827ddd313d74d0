"""Faults are said aloud, but the same one not thousands of times."""

import logging

import msgspec
import pytest

from rollout.fault_log import EVERY, IN_FULL, MAX_KINDS, MILESTONES, Faults
from rollout.types import StopReason
from tests.fakes import make_rollout


def say(faults: Faults, error: str, *, env: str = "a", times: int = 1) -> None:
    rollout = make_rollout(stop=StopReason.ENV_ERROR)
    for _ in range(times):
        faults.say(msgspec.structs.replace(rollout, error=error, env=env))


def test_the_same_fault_is_said_a_few_times_and_then_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    faults = Faults()
    for number in range(2 * EVERY):
        say(faults, f"Traceback\n  line {number}\nKeyError: {number}")
    full, rest = caplog.messages[:IN_FULL], caplog.messages[IN_FULL:]
    assert full[0] == "rollout g000000/0 of basics/sum_list/0: env_error: KeyError: 0"
    assert full[-1].endswith("KeyError: 2 (from now on only counted)")
    counts = [*MILESTONES, EVERY, 2 * EVERY]
    assert [
        f"the same fault {count} times" in line for count, line in zip(counts, rest, strict=True)
    ]
    assert rest[-1] == f"basics/a: the same fault {2 * EVERY} times: env_error: KeyError: 999"


def test_another_environment_and_another_message_are_other_faults(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = Faults()
    say(faults, "KeyError", times=IN_FULL + 1)
    assert len(caplog.messages) == IN_FULL
    say(faults, "KeyError", env="b")
    say(faults, "ValueError")
    assert len(caplog.messages) == IN_FULL + 2


def test_counting_does_not_grow_without_end(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults()
    for number in range(MAX_KINDS + 5):
        say(faults, "x" * number)
    assert len(faults._counts) <= MAX_KINDS
