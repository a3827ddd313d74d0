"""Groups played by an actor without a coordinator."""

from collections import deque
from collections.abc import Sequence

from rollout.actor import Actor
from rollout.types import Grant, Rollout, RolloutDone


async def play(actor: Actor, grants: Sequence[Grant], *, room: int) -> list[Rollout]:
    """Every rollout, as they end. A group begins when there is room for it among `room` members."""
    ended: list[Rollout] = []
    waiting, playing = deque(grants), 0
    while waiting or playing:
        while waiting and (not playing or playing + len(waiting[0].members) <= room):
            grant = waiting.popleft()
            playing += len(grant.members)
            await actor.play([grant])
        for event in await actor.events():
            if isinstance(event, RolloutDone):
                playing -= 1
                ended.append(event.rollout)
    return ended
