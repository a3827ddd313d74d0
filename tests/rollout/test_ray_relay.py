"""Weights carried between nodes: several raylets on this machine, each a node of its own to Ray."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from blockbuster import BlockBuster
from torch import Tensor

from configs.load import load
from configs.schema import RunConfig
from learner.publish import Publisher
from rollout.weights import Manifest, WeightsError, read_tensors
from tests.recipes import BASICS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[str]]:
    """The ids of three nodes, the driver's first."""
    import ray
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    here = ray.get_runtime_context().get_node_id()
    yield [here, *(node["NodeID"] for node in ray.nodes() if node["NodeID"] != here)]
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(autouse=True)
def calls_may_block(no_blocking_calls: BlockBuster) -> None:
    """Ray's own do, when it starts an actor."""
    no_blocking_calls.deactivate()


def weights(seed: int, *, num_numbers: int = 12_000_000) -> dict[str, Tensor]:
    """Of several chunks."""
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(num_numbers, generator=generator)}


class Bench:
    """A publisher on the driver's node."""

    def __init__(self, tmp_path: Path, *settings: str) -> None:
        self.shared = tmp_path / "shm"
        self.shared.mkdir()
        self.config: RunConfig = load([BASICS, f"weights.dir={self.shared}", *settings])
        self.run_dir = tmp_path / "run"
        self.settings = msgspec.json.encode(self.config), str(self.run_dir)
        self.publisher = Publisher(
            directory=str(self.shared),
            fallback=tmp_path / "fallback",
            run_id="run",
            log=tmp_path / "version.json",
        )

    def publish(self, tensors: dict[str, Tensor], version: int) -> Manifest:
        return self.publisher.publish(tensors, version=version, step=version)


@pytest.mark.parametrize("delta", [False, True])
def test_a_version_is_carried_to_every_node_but_the_learners(
    tmp_path: Path, nodes: list[str], delta: bool
) -> None:
    from rollout.ray_relay import start_relay

    bench = Bench(tmp_path, f"weights.delta={str(delta).lower()}")
    places = {"learner": nodes[0], "actor-0": nodes[0], "actor-1": nodes[1], "actor-2": nodes[2]}

    async def play() -> None:
        relay, lanes = await start_relay(bench.config, bench.settings, places)
        assert relay is not None
        assert lanes.keys() == {"actor-1", "actor-2"} and lanes["actor-1"] is lanes["actor-2"]
        assert len(relay.processes) == 3
        tensors = weights(0)
        for version in (1, 2, 3):
            manifest = bench.publish(tensors, version)
            one, other = await asyncio.gather(
                *(lanes[name].at(places[name], manifest) for name in ("actor-1", "actor-2"))
            )
            assert len({manifest.path, one.path, other.path}) == 3
            for arrived in (one, other):
                assert arrived.checksum == manifest.checksum
                assert torch.equal(read_tensors(arrived)["a"], tensors["a"])
            tensors = {"a": tensors["a"].clone()}
            tensors["a"][:: 100 * version] += 1
        await relay.close()
        assert not list(bench.shared.glob("*@*"))

    asyncio.run(play())


def test_a_file_that_is_gone_is_said_with_its_version(tmp_path: Path, nodes: list[str]) -> None:
    from rollout.ray_relay import start_relay

    bench = Bench(tmp_path, "weights.transport=relay")
    places = {"learner": nodes[0], "actor-0": nodes[0], "actor-1": nodes[0]}

    async def play() -> None:
        relay, lanes = await start_relay(bench.config, bench.settings, places)
        assert relay is not None and len(relay.processes) == 1
        versions = [weights(seed, num_numbers=1000) for seed in (1, 2, 3)]
        manifests = [bench.publish(one, i) for i, one in enumerate(versions, start=1)]
        failed, _ = await asyncio.gather(
            *(lanes[name].at(nodes[0], manifests[0]) for name in ("actor-0", "actor-1")),
            return_exceptions=True,
        )
        assert isinstance(failed, WeightsError)
        assert "version 1" in str(failed) and "not the file that was published" in str(failed)
        # The lane is none the worse for it.
        arrived = await lanes["actor-0"].at(nodes[0], manifests[2])
        assert torch.equal(read_tensors(arrived)["a"], versions[2]["a"])
        await relay.close()

    asyncio.run(play())


def test_a_node_whose_relay_dies_is_named(tmp_path: Path, nodes: list[str]) -> None:
    import ray

    from rollout.ray_relay import start_relay

    bench = Bench(tmp_path)
    places = {"learner": nodes[0], "actor-0": nodes[1]}

    async def play() -> None:
        relay, lanes = await start_relay(bench.config, bench.settings, places)
        assert relay is not None
        lane = lanes["actor-0"]
        ray.kill(lane.receivers[nodes[1]])
        with pytest.raises(WeightsError, match=rf"version 1: node .*{nodes[1][:12]}.*Died"):
            await lane.at(nodes[1], bench.publish(weights(0), 1))
        await relay.close()

    asyncio.run(play())


def test_a_carriage_that_takes_too_long_says_how_far_it_came(
    tmp_path: Path, nodes: list[str]
) -> None:
    from rollout.ray_relay import start_relay

    bench = Bench(tmp_path, "weights.deadline_s=0.001")
    places = {"learner": nodes[0], "actor-0": nodes[1]}

    async def play() -> None:
        relay, lanes = await start_relay(bench.config, bench.settings, places)
        assert relay is not None
        said = r"version 1: node .* had 0 of \d+ chunks after 0\.0008 s.*weights\.deadline_s=0\.001"
        with pytest.raises(WeightsError, match=said):
            await lanes["actor-0"].at(nodes[1], bench.publish(weights(0), 1))
        await relay.close()

    asyncio.run(play())


@pytest.mark.parametrize(
    ("transport", "kind", "is_far"),
    [("file", "local", False), ("nccl", "vllm", True), ("file", "http", True)],
)
def test_nothing_is_started_where_nothing_is_carried(
    tmp_path: Path, nodes: list[str], transport: str, kind: str, is_far: bool
) -> None:
    from rollout.ray_relay import start_relay

    bench = Bench(tmp_path)
    section = msgspec.structs.replace(bench.config.weights, transport=transport)
    engine = msgspec.structs.replace(bench.config.engine, kind=kind)
    config = msgspec.structs.replace(bench.config, weights=section, engine=engine)
    places = {"learner": nodes[0], "actor-0": nodes[is_far]}
    assert asyncio.run(start_relay(config, bench.settings, places)) == (None, {})
