"""How the coordinator reaches actors and the learner, wherever they run.

`rollout/cluster.py` implements these over Ray; a plain `Actor` satisfies its port as it is.
"""

from typing import Protocol

from configs.schema import PoolSection
from envpool.pool import Plugged
from envpool.task import Config, PoolKey
from rollout.engine import UpdateReport
from rollout.types import ActorEvent, Grant, StepReport, TrainBatch
from rollout.weights import Endpoint, Manifest


class ActorPort(Protocol):
    """An actor: plays what it is granted and reports what happens."""

    @property
    def name(self) -> str: ...

    async def play(self, grants: list[Grant]) -> None:
        """Begin these; returns at once."""
        ...

    async def cancel(self, group_ids: list[str]) -> None:
        """Stop the members of these groups; they end as cancelled."""
        ...

    async def events(self) -> list[ActorEvent]:
        """What happened since the last call; waits until something has. Raises when it died."""
        ...

    async def update_weights(self, manifest: Manifest) -> UpdateReport:
        """Load a version while playing. Raises when the engine refuses it."""
        ...

    async def join(self, endpoint: Endpoint) -> None:
        """Meet the learner there: from then on its weights can be sent. Raises EngineError."""
        ...

    async def plug(self, name: str, section: PoolSection) -> Plugged:
        """Serve a version of a pool beside those served. Raises ConfigError for one that cannot be."""
        ...

    async def draw(
        self, key: PoolKey, env: str, *, level: int, seed: int, count: int
    ) -> list[Config]:
        """Configurations of an environment of a version served. Raises EnvFault."""
        ...

    async def try_env(self, key: PoolKey, env: str, *, level: int) -> None:
        """Begin an episode as a check of an environment. Raises ConfigError for a mistake, EnvFault."""
        ...

    async def retire(self, key: PoolKey) -> None:
        """Open no new session on a version; its processes end with its last session."""
        ...

    async def close(self) -> None: ...


class LearnerPort(Protocol):
    """The learner: consumes batches, publishes versions."""

    async def train(self, batch: TrainBatch) -> StepReport:
        """One optimizer step. Raises when it must not be taken."""
        ...

    async def published(self, version: int) -> Manifest:
        """Wait until a version is written that a report said is being published; a step may be trained
        meanwhile. Raises what it failed with."""
        ...

    async def save(self, directory: str) -> None:
        """Write `hf/` and the learner's part of `resume/` into an existing directory."""
        ...

    async def open_group(self, actor: str) -> Endpoint:
        """Where an actor's engine can meet it, with `weights.transport=nccl`."""
        ...

    async def join_group(self, actor: str) -> None:
        """Wait for that engine there."""
        ...

    async def send(self, actor: str, version: int) -> None:
        """Send the version just published to an engine that loads it. Raises WeightsError."""
        ...

    async def close(self) -> None: ...
