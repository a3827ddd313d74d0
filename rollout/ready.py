"""What a process of a run says once it is ready, and what all of them have to know about the machine."""

import logging
import os

import msgspec

from configs.schema import RunConfig
from rollout.processes import Process

logger = logging.getLogger(__name__)


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says once it is ready."""

    name: str
    node: str
    node_id: str
    """Ray's id of it."""
    processes: list[Process]
    num_parameters: int
    start_s: dict[str, float]
    """Seconds that the parts of its start took."""
    layers: dict[str, list[str]] = {}
    """What isolates the code of each pool that it serves."""


def log_ready(what: str, *, threads: int) -> None:
    """Leave a line in this process's log: an empty file looks broken."""
    logger.info("ready: %s; pid %d, %d torch threads", what, os.getpid(), threads)


def shares_cpu(config: RunConfig) -> bool:
    """Whether actors and learner compute on the CPU of one machine."""
    return not config.cluster.address and not config.learner.num_gpus
