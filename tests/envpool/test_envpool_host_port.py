"""A host on a port: who may speak to it, and what becomes of a connection whose other end is gone."""

import socket
from collections.abc import AsyncIterator

import pytest

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import link
from envpool.host import Host
from envpool.pool import EnvPool
from envpool.remote import Hosts
from envpool.task import Task
from tests.envpool.calls import call

LIMITS = EnvPoolSection(step_timeout_s=5.0, start_timeout_s=20.0, spares=0)
HOSTILE = PoolSection(source="hostile_envs:pool", trusted=True)


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    async with await EnvPool.start(limits=LIMITS) as pool:
        yield pool


def task(hosts: Hosts) -> Task:
    version = hosts.versions()["hostile"]
    return Task(pool="hostile", pool_version=version, env="hostile", config={}, seed=3)


async def test_a_port_needs_a_token(pool: EnvPool) -> None:
    async with Host(pool) as host:
        with pytest.raises(ConfigError, match="a token is needed"):
            await host.listen("127.0.0.1:0")
    async with Host(pool, token="secret") as host:
        address = await host.listen("127.0.0.1:0")
        limits = EnvPoolSection(start_timeout_s=0.3)
        with pytest.raises(ConfigError, match="the token is wrong"):
            await Hosts.start([address], {"hostile": HOSTILE}, limits=limits, token="guess")
        async with (
            await Hosts.start(
                [address], {"hostile": HOSTILE}, limits=LIMITS, token="secret"
            ) as hosts,
            hosts.session(task(hosts)) as session,
        ):
            assert await call(session, "count") == "1"


async def test_a_connection_notices_that_the_other_machine_is_gone(pool: EnvPool) -> None:
    kept: list[socket.socket] = []
    noticed = link.keep_alive

    def notice(connection: socket.socket) -> None:
        noticed(connection)
        kept.append(connection)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "keep_alive", notice)
        async with Host(pool, token="secret") as host:
            address = await host.listen("127.0.0.1:0")
            async with await Hosts.start(
                [address], {"hostile": HOSTILE}, limits=LIMITS, token="secret"
            ):
                assert len(kept) >= 2
                for connection in kept:
                    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                    unread_ms = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                    assert unread_ms == 1000 * link.SILENCE_S
