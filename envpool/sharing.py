"""Processes that serve several sessions at the same time: for trusted environments whose steps are quick.

    Share, Share, ... -- requests in turn --> SharedProcess -- one wire --> process -- one environment each

What ends such a process ends all its sessions, and nobody knows which of those that were asked did it.
So none is blamed: each goes on in another process, those that were asked in one of their own, where
the one that did it is found out.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from configs.schema import PoolSection
from envpool.frames import End, Failed, FrameError, Outcome, Reply, Request
from envpool.nursery import Death, Nursery
from envpool.session import EnvFault, Worker, name_of


class Share:
    """The place of one session in a process that has others."""

    num_sessions = 0

    def __init__(self, process: "SharedProcess", session: int) -> None:
        self.child = process.worker.child
        self.session = session
        self.next_id = process.worker.next_id
        self._process = process

    @property
    def is_gone(self) -> bool:
        return self._process.worker.is_gone

    @property
    def death(self) -> Death | None:
        """Never its own: it may have been another's."""
        return None if self.child.death is None else Death.LOST

    async def ask(self, request: Request, timeout_s: float) -> Reply:
        worker = self._process.worker
        try:
            reply = await worker.wire.ask(request, timeout_s)
        except (TimeoutError, ConnectionError, FrameError, msgspec.MsgspecError) as error:
            await worker.kill()
            how = f"a step took over {timeout_s} s" if isinstance(error, TimeoutError) else error
            raise EnvFault(
                Outcome.CRASHED, f"{name_of(request)}: process {self.child.pid} of several: {how}"
            ) from error
        if isinstance(reply, Failed):
            raise EnvFault(reply.outcome, reply.error)
        return reply

    async def close(self) -> None:
        """Leave the process to the others; the last of them ends it when it is spent."""
        await self._process.leave(self)


class SharedProcess:
    """A process and the sessions that are on it."""

    def __init__(self, worker: Worker, section: PoolSection) -> None:
        self.worker = worker
        # Who gave up a step that hangs does not kill the process, which has others.
        worker.wire.when_late = worker.let_go
        self._free = list(range(section.sessions_per_worker))
        self._num_live = 0
        # Each place serves as many as the process of a single session would.
        self._num_left = section.sessions_per_worker * section.sessions_per_process

    @property
    def has_room(self) -> bool:
        return bool(self._free) and self._num_left > 0 and not self.worker.is_gone

    def take(self) -> Share:
        """A place for one more session."""
        self._num_left -= 1
        self._num_live += 1
        return Share(self, self._free.pop())

    async def leave(self, share: Share) -> None:
        """Give a place back; once for each."""
        self._num_live -= 1
        self._free.append(share.session)
        self.worker.wire.tell(End(id=share.next_id(), session=share.session))
        if not self._num_live and not self._num_left:
            await self.worker.close()


class SharedProcesses:
    """Those of a pool of pools, by zygote."""

    def __init__(self, fork: Callable[[Nursery], Awaitable[Worker]]) -> None:
        self._fork = fork
        self._processes: dict[Nursery, list[SharedProcess]] = {}
        self._forking = asyncio.Lock()

    async def take(self, nursery: Nursery, section: PoolSection) -> Share:
        """A place in the first process with room, or in a new one. Raises EnvFault."""
        async with self._forking:  # Whoever opens meanwhile finds room in what is forked now.
            living = {
                each: [one for one in processes if not one.worker.is_gone]
                for each, processes in self._processes.items()
                if each.is_alive
            }
            self._processes = living
            here = living.setdefault(nursery, [])
            for process in here:
                if process.has_room:
                    return process.take()
            here.append(SharedProcess(await self._fork(nursery), section))
            return here[-1].take()

    def pids(self) -> list[int]:
        """Process ids of those alive."""
        return [
            one.worker.child.pid
            for processes in self._processes.values()
            for one in processes
            if one.worker.child.pid and not one.worker.is_gone
        ]
