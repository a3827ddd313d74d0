"""Tasks of the hostile pool, and calls of its tools."""

from typing import Any

from envpool.env import call_text
from envpool.pool import EnvPool, Session
from envpool.task import Task


def task(pool: EnvPool, **config: Any) -> Task:
    version = pool.versions()["hostile"]
    return Task(pool="hostile", pool_version=version, env="hostile", config=config, seed=3)


async def call(session: Session, name: str, /, **arguments: Any) -> str:
    return (await session.step(call_text(name, arguments))).observation
