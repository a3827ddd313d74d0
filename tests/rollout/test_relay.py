from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from learner.publish import Publisher
from rollout.relay import Parcel, Receiver, Sender
from rollout.weights import Manifest, WeightsError, read_tensors, sweep

CHUNK = 1000


def weights(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {"a": torch.randn(40, 50), "b": torch.randn(30).bfloat16()}


def nudged(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """One number in fifty is another."""
    rng = Random(seed)
    moved = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in moved.values():
        flat = tensor.view(-1)
        for index in rng.sample(range(len(flat)), max(1, len(flat) // 50)):
            flat[index] += 1
    return moved


class Pair:
    """A sender and receivers in directories of their own."""

    def __init__(self, tmp_path: Path, *, delta: bool, num_nodes: int = 1) -> None:
        self.sent_bytes = 0
        self.folder = tmp_path
        self.publisher = Publisher(
            directory=str(self.made("from")),
            fallback=tmp_path / "f",
            run_id="run",
            log=tmp_path / "v.json",
        )
        self.sender = Sender(delta=delta, chunk_bytes=CHUNK)
        self.receivers = [
            Receiver(
                f"run@{i}",
                directory=self.made(f"to{i}"),
                fallback=tmp_path / "f",
                delta=delta,
            )
            for i in range(num_nodes)
        ]
        self.version = 0

    def made(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def publish(self, tensors: dict[str, Tensor]) -> Manifest:
        self.version += 1
        return self.publisher.publish(tensors, version=self.version, step=self.version)

    def carry(self, manifest: Manifest, *, to: int = 0) -> Manifest:
        return self.carry_parcel(self.sender.open(manifest), to=to)

    def carry_parcel(self, parcel: Parcel, *, to: int = 0) -> Manifest:
        receiver, version = self.receivers[to], parcel.manifest.version
        has_base = receiver.begin(parcel)
        self.sent_bytes = 0
        order = list(range(parcel.num_chunks))
        Random(version).shuffle(order)
        for index in order:
            chunk, data = self.sender.chunk(version, index, has_base=has_base)
            self.sent_bytes += len(data)
            receiver.take(chunk, data)
        return receiver.finish(version)


@pytest.mark.parametrize("delta", [False, True])
def test_what_arrives_is_what_was_published(tmp_path: Path, delta: bool) -> None:
    pair = Pair(tmp_path, delta=delta)
    for seed in range(4):
        manifest = pair.publish(weights(seed))
        arrived = pair.carry(manifest)
        assert Path(arrived.path).parent == tmp_path / "to0"
        assert msgspec.structs.replace(arrived, path=manifest.path) == manifest
        torch.testing.assert_close(read_tensors(arrived), weights(seed), rtol=0, atol=0)
        # Nothing is shorter than numbers that all changed.
        assert pair.sent_bytes == manifest.num_bytes


def test_changes_alone_are_sent_where_the_last_version_arrived(tmp_path: Path) -> None:
    pair = Pair(tmp_path, delta=True)
    tensors = weights(0)
    for seed in range(5):
        manifest = pair.publish(tensors)
        arrived = pair.carry(manifest)
        torch.testing.assert_close(read_tensors(arrived), tensors, rtol=0, atol=0)
        assert (pair.sent_bytes < manifest.num_bytes / 8) == (seed > 0)
        tensors = nudged(tensors, seed)


def test_whoever_missed_a_version_gets_the_whole_of_the_newest(tmp_path: Path) -> None:
    pair = Pair(tmp_path, delta=True, num_nodes=2)
    tensors = weights(0)
    pair.carry_parcel(pair.sender.open(pair.publish(tensors)))
    tensors = nudged(tensors, 1)
    parcel = pair.sender.open(pair.publish(tensors))
    pair.carry_parcel(parcel)
    assert pair.sent_bytes < parcel.manifest.num_bytes / 8
    arrived = pair.carry_parcel(parcel, to=1)
    assert pair.sent_bytes == parcel.manifest.num_bytes
    torch.testing.assert_close(read_tensors(arrived), tensors, rtol=0, atol=0)


def test_weights_of_another_layout_are_sent_whole(tmp_path: Path) -> None:
    pair = Pair(tmp_path, delta=True)
    pair.carry(pair.publish({"a": torch.zeros(40, 50)}))
    manifest = pair.publish({"a": torch.zeros(50, 40)})  # as many bytes
    arrived = pair.carry(manifest)
    assert pair.sent_bytes == manifest.num_bytes
    assert read_tensors(arrived)["a"].shape == (50, 40)


def test_a_version_can_be_sent_although_its_file_is_replaced_meanwhile(tmp_path: Path) -> None:
    pair = Pair(tmp_path, delta=False)
    parcel = pair.sender.open(pair.publish(weights(1)))
    for seed in (2, 3, 4):
        pair.publish(weights(seed))
    arrived = pair.carry_parcel(parcel)
    torch.testing.assert_close(read_tensors(arrived), weights(1), rtol=0, atol=0)


def test_a_file_that_was_replaced_before_is_refused(tmp_path: Path) -> None:
    pair = Pair(tmp_path, delta=False)
    manifest = pair.publish(weights(1))
    for seed in (2, 3):
        pair.publish(weights(seed))
    with pytest.raises(WeightsError, match="version 1"):
        pair.sender.open(manifest)


def test_a_damaged_chunk_is_refused_by_its_number(tmp_path: Path) -> None:
    pair = Pair(tmp_path, delta=False)
    parcel = pair.sender.open(pair.publish(weights(1)))
    pair.receivers[0].begin(parcel)
    chunk, data = pair.sender.chunk(1, 2, has_base=False)
    damaged = data.copy()
    damaged[5] ^= 1
    with pytest.raises(WeightsError, match="version 1, chunk 2: it was damaged"):
        pair.receivers[0].take(chunk, damaged)
    with pytest.raises(WeightsError, match=r"version 2, chunk 2: .* any more"):
        pair.receivers[0].take(msgspec.structs.replace(chunk, version=2), data)
    pair.receivers[0].close()


def test_nothing_that_is_not_whole_gets_a_name(tmp_path: Path) -> None:
    pair = Pair(tmp_path, delta=False)
    first = pair.carry(pair.publish(weights(1)))
    parcel = pair.sender.open(pair.publish(weights(2)))
    receiver = pair.receivers[0]
    receiver.begin(parcel)
    for index in range(parcel.num_chunks - 1):
        receiver.take(*pair.sender.chunk(2, index, has_base=False))
    with pytest.raises(WeightsError, match="version 2"):
        receiver.finish(2)
    torch.testing.assert_close(read_tensors(first), weights(1), rtol=0, atol=0)
    named = [path for path in (tmp_path / "to0").iterdir() if path.suffix == ".safetensors"]
    assert named == [Path(first.path)]
    # The next version is none the worse for it.
    arrived = pair.carry(pair.publish(weights(3)))
    torch.testing.assert_close(read_tensors(arrived), weights(3), rtol=0, atol=0)


def test_changes_of_another_base_end_in_no_file(tmp_path: Path) -> None:
    pair = Pair(tmp_path, delta=True)
    pair.carry(pair.publish(weights(1)))
    pair.sender.open(pair.publish(weights(2)))  # the receiver misses this one
    parcel = pair.sender.open(pair.publish(nudged(weights(2), 0)))
    assert not pair.receivers[0].begin(parcel)
    for index in range(parcel.num_chunks):
        pair.receivers[0].take(*pair.sender.chunk(3, index, has_base=True))
    with pytest.raises(WeightsError, match="version 3"):
        pair.receivers[0].finish(3)


def test_the_last_two_versions_can_be_read_where_they_arrived(tmp_path: Path) -> None:
    pair = Pair(tmp_path, delta=True)
    arrived = [pair.carry(pair.publish(weights(seed))) for seed in range(3)]
    with pytest.raises(WeightsError, match="version 1"):
        read_tensors(arrived[0])
    for seed in (1, 2):
        torch.testing.assert_close(read_tensors(arrived[seed]), weights(seed))
    pair.receivers[0].close()
    assert list((tmp_path / "to0").iterdir()) == []


def test_a_sender_that_sends_no_changes_lets_go_of_what_was_sent(tmp_path: Path) -> None:
    pair = Pair(tmp_path, delta=False)
    pair.carry(pair.publish(weights(1)))
    pair.sender.done()
    with pytest.raises(WeightsError, match="not being sent any more"):
        pair.sender.chunk(1, 0, has_base=False)


def test_what_was_carried_is_swept_with_its_run(tmp_path: Path) -> None:
    mine = tmp_path / "millrace-run@node-actors-0.safetensors.partial"
    others = [
        tmp_path / "millrace-run-2@node-actors-0.safetensors",
        tmp_path / "millrace-other@node-actors-0.safetensors",
    ]
    for path in [mine, *others]:
        path.touch()
    sweep([tmp_path], "run")
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_chunks_cover_a_file_of_any_length() -> None:
    for num_bytes in (1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK):
        manifest = Manifest(version=1, step=1, num_bytes=num_bytes)
        parcel = Parcel(manifest=manifest, chunk_bytes=CHUNK)
        covered = np.zeros(num_bytes, int)
        for index in range(parcel.num_chunks):
            covered[parcel.stretch(index)] += 1
        assert covered.min() == covered.max() == 1
