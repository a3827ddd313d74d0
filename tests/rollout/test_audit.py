"""Busy shares from an event log."""

from pathlib import Path

import msgspec
import pytest

from rollout.audit import AuditError, busy_share
from rollout.files import BusySpan, Mark


def write(run_dir: Path, *events: msgspec.Struct) -> None:
    lines = [msgspec.json.encode(event) + b"\n" for event in events]
    (run_dir / "events.jsonl").write_bytes(b"".join(lines))


def test_overlap_counts_only_what_lies_in_the_training_phase(tmp_path: Path) -> None:
    write(
        tmp_path,
        BusySpan(who="actor-0", start_s=0, end_s=13),  # 10..13 inside
        Mark(name="train_begin", at_s=10),
        BusySpan(who="actor-1", start_s=12, end_s=15),
        BusySpan(who="learner", start_s=14, end_s=18),
        BusySpan(who="actor-0", start_s=17, end_s=25),  # 17..20 inside
        Mark(name="train_end", at_s=20),
    )
    share = busy_share(tmp_path)
    assert share.wall_s == 10
    assert share.engine == pytest.approx(0.8)  # 10..15 and 17..20
    assert share.learner == pytest.approx(0.4)
    assert share.both == pytest.approx(0.2)  # 14..15 and 17..18


def test_a_run_that_did_not_train_is_refused(tmp_path: Path) -> None:
    write(tmp_path, Mark(name="train_begin", at_s=1))
    with pytest.raises(AuditError, match="training phase"):
        busy_share(tmp_path)
