import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.overlap import Overlapping
from learner.publish import Publisher
from rollout.weights import Manifest, WeightsError, read_tensors


class HeldPublisher(Publisher):
    """Begins to write only when it is let."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            directory=str(folder), fallback=folder, run_id="run", log=folder / "version.json"
        )
        self.may_write = threading.Event()
        self.error: Exception | None = None

    def publish(self, tensors: Mapping[str, Tensor], **named: Any) -> Manifest:
        self.may_write.wait()
        if self.error is not None:
            raise self.error
        return super().publish(tensors, **named)


def test_what_is_published_is_what_the_weights_were(tmp_path: Path) -> None:
    publisher = HeldPublisher(tmp_path)
    overlapping = Overlapping(publisher)
    weight = torch.nn.Parameter(torch.full((3,), 1.0, dtype=torch.bfloat16))
    overlapping.publish({"a": weight}, version=1, step=1)
    with torch.no_grad():
        weight.fill_(2.0)  # as the next optimizer step does, while nothing is written yet
    publisher.may_write.set()
    manifest = overlapping.published(1)
    assert (manifest.version, manifest.step) == (1, 1)
    assert read_tensors(manifest)["a"].tolist() == [1.0] * 3
    overlapping.publish({"a": weight}, version=2, step=2)
    assert read_tensors(overlapping.published(2))["a"].tolist() == [2.0] * 3
    # The version before can still be asked for, and read.
    assert read_tensors(overlapping.published(1))["a"].tolist() == [1.0] * 3
    overlapping.close()
    assert [path.name for path in tmp_path.iterdir()] == ["version.json"]


def test_a_version_waits_for_the_one_before(tmp_path: Path) -> None:
    publisher = HeldPublisher(tmp_path)
    overlapping = Overlapping(publisher)
    overlapping.publish({"a": torch.zeros(1)}, version=1, step=1)
    second = threading.Thread(
        target=lambda: overlapping.publish({"a": torch.ones(1)}, version=2, step=2)
    )
    second.start()
    publisher.may_write.set()
    second.join()
    # Copied into the same memory: too early, and the first would have the weights of the second.
    assert read_tensors(overlapping.published(1))["a"].tolist() == [0.0]
    assert read_tensors(overlapping.published(2))["a"].tolist() == [1.0]
    overlapping.close()


def test_weights_of_another_shape_are_published_too(tmp_path: Path) -> None:
    publisher = HeldPublisher(tmp_path)
    publisher.may_write.set()
    overlapping = Overlapping(publisher)
    for version, tensors in enumerate(
        [
            {"a": torch.ones(2), "b": torch.ones(1)},
            {"a": torch.ones(2, 1)},
            {"a": torch.ones(2).half()},
        ]
    ):
        overlapping.publish(tensors, version=version + 1, step=version)
        read = read_tensors(overlapping.published(version + 1))
        torch.testing.assert_close(read, tensors, rtol=0, atol=0)
    overlapping.close()


def test_a_failure_is_raised_to_whoever_asks_and_by_all_that_follows(tmp_path: Path) -> None:
    publisher = HeldPublisher(tmp_path)
    publisher.error = OSError("no space left on device")
    publisher.may_write.set()
    overlapping = Overlapping(publisher)
    overlapping.publish({"a": torch.zeros(1)}, version=1, step=1)
    for call in (
        lambda: overlapping.published(1),
        overlapping.wait,
        lambda: overlapping.publish({"a": torch.zeros(1)}, version=2, step=2),
        overlapping.close,
    ):
        with pytest.raises(OSError, match="no space left"):
            call()


def test_a_version_that_nobody_publishes_is_refused(tmp_path: Path) -> None:
    publisher = HeldPublisher(tmp_path)
    publisher.may_write.set()
    overlapping = Overlapping(publisher)
    with pytest.raises(WeightsError, match=r"version 1 is not being published \(of late: none\)"):
        overlapping.published(1)
    for version in (1, 2, 3):
        overlapping.publish({"a": torch.zeros(1)}, version=version, step=version)
    with pytest.raises(WeightsError, match=r"version 1 .*of late: 2, 3"):
        overlapping.published(1)
    overlapping.close()
