"""Engines and the learner meet, so that weights can be sent: one group of processes for each engine."""

import asyncio
from collections.abc import Mapping

from rollout.ports import ActorPort, LearnerPort


async def join_groups(
    actors: Mapping[str, ActorPort], learner: LearnerPort, *, timeout_s: float
) -> None:
    """Let the learner meet the engine of every actor, one after another.

    Raises TimeoutError when one does not come, and whatever either end raised.
    """
    for name, actor in actors.items():
        try:
            async with asyncio.timeout(timeout_s):
                await _join(name, actor, learner)
        except TimeoutError as error:
            raise TimeoutError(
                f"the learner and {name} did not meet within cluster.start_timeout_s={timeout_s:g} to "
                "send weights over NCCL: their nodes must reach each other at any port; NCCL_DEBUG=INFO "
                'says more, and weights.transport="file" needs none of it on one node'
            ) from error


async def _join(name: str, actor: ActorPort, learner: LearnerPort) -> None:
    endpoint = await learner.open_group(name)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(actor.join(endpoint), name=f"join-{name}")
            group.create_task(learner.join_group(name), name=f"join-learner-{name}")
    except ExceptionGroup as errors:
        # Whoever failed first; the other end only waited for it.
        raise errors.exceptions[0] from None
