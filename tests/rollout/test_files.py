"""Line files: what was given is on disk, and a disk that fails is heard of."""

from pathlib import Path

import pytest

from rollout.files import Mark, RunFiles, line_files


def test_flushed_sizes_are_those_of_what_was_given_before(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.event(Mark(name="one", at_s=1.0))
    sizes = files.flush().wait()
    assert sizes == line_files(tmp_path) and sizes["events.jsonl"] > 0
    files.event(Mark(name="two", at_s=2.0))
    files.close()
    assert line_files(tmp_path)["events.jsonl"] > sizes["events.jsonl"]


def test_a_disk_that_fails_is_heard_of_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()  # cannot be opened as a file
    files = RunFiles(tmp_path)
    with pytest.raises(OSError, match=r"events\.jsonl|could not be written"):
        files.flush().wait()
    with pytest.raises(IsADirectoryError):
        files.close()
    with pytest.raises(IsADirectoryError):
        files.event(Mark(name="late", at_s=0.0))
