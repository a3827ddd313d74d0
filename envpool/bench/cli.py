"""`python launch.py bench envpool`: steps per second of the session pool, against a bound and its peers.

Every system steps the same environments, in one run and in turn, round after round: what else happens
on the machine hits all of them. A ratio is taken within each round; the median over rounds is reported.
Numbers are those of a client that asks for each session's next step as soon as it has the last answer.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from envpool.bench import (
    echoes,
    new_pool,
    ours,
    pools,
    recovery,
    report,
    serialise,
    vectors,
)
from envpool.bench.apart import Apart
from envpool.bench.system import Candidate, Local, Start, SystemMissingError

LEGEND = """\
systems:
  sandbox, no_sandbox        sessions of the pool, a process for each
  shared                     sessions of a trusted pool, 32 in a process
  host, host_shared          `sandbox` and `shared` through a host, another process that relays
  bare_socketpair            as many processes that only echo a frame: the bound
  sync_vector_env            gymnasium, all environments in one process
  async_vector_env           gymnasium, a process for each, in lock step
  ray_actors                 Ray, an actor for each; as many as start in seconds
  multiprocessing_pool, pebble   a process for each core, given steps in turn
  serialise_fork_step        servers that keep environments as bytes and fork for every step
  least_serialise_fork_step  the same with as little work as possible
  ..._slow, ..._long_tail    2 % of the steps take 20 ms; steps take lognormal times, median 1 ms
columns:
  per CPU s                  steps per CPU second of all processes, the client's included
  MiB                        private memory of a worker process
  start s                    until every environment is ready for its first step
"""


@dataclass(slots=True, kw_only=True, frozen=True)
class Scale:
    """How much is measured."""

    size: int
    """Sessions where systems are compared."""
    other_sizes: Sequence[int]
    """Sessions of ours beside that, once each."""
    ray_actors: int
    rounds: int
    seconds: float
    live: int
    """Sessions when many are killed."""
    killed: int
    new_pools: int


FULL = Scale(
    size=64,
    other_sizes=(1, 512, 2000),
    ray_actors=4,
    rounds=5,
    seconds=1.0,
    live=512,
    killed=200,
    new_pools=20,
)
QUICK = Scale(
    size=4, other_sizes=(1,), ray_actors=2, rounds=1, seconds=0.05, live=8, killed=4, new_pools=2
)


def main(arguments: list[str]) -> int:
    """Measure, print tables, and with --json one JSON object on the last line."""
    parser = argparse.ArgumentParser(
        prog="launch.py bench envpool",
        description=__doc__,
        epilog=LEGEND,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON at the end")
    parser.add_argument("--quick", action="store_true", help="few sessions for a moment: a trial")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}")
    parser.add_argument(
        "--seconds", type=float, help=f"of each measurement, default {FULL.seconds}"
    )
    parser.add_argument(
        "--only", metavar="A,B", help="measure these systems, and nothing but steps"
    )
    options = parser.parse_args(arguments)
    scale = QUICK if options.quick else FULL
    progress = Console(stderr=True)
    # The table is wider than what is assumed of a pipe.
    console = Console(width=None if sys.stdout.isatty() else 110)
    compared, alone = compared_systems(scale), [] if options.only else other_sizes(scale)
    if options.only:
        names = options.only.split(",")
        if unknown := sorted(set(names) - {one.name for one in compared}):
            parser.error(f"there is no system {unknown[0]!r}: --help has their names")
        compared = [one for one in compared if one.name in names]
    seconds, rounds = options.seconds or scale.seconds, options.rounds or scale.rounds
    for number in range(1, rounds + 1):
        for one in compared:
            _measure(one, seconds, progress, f"round {number} of {rounds}")
    for one in alone:
        _measure(one, seconds, progress, "once")
    found = report.steps(console, compared, alone, scale.size)
    if not options.only:
        found |= report.moments(
            console,
            recovery.recovery(ours.MODES[0], scale.live, scale.killed),
            new_pool.new_pool_latencies(scale.new_pools),
        )
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    return 0


def compared_systems(scale: Scale) -> list[Candidate]:
    """What is measured in each round, in this order: ours among its peers."""
    size = scale.size
    first, *others = ours.MODES

    def own(mode: ours.Mode, variant: str = "") -> Candidate:
        start = partial(ours.sessions, mode, f"sum_list{variant}")
        return Local(f"{mode.name}{variant}", size, start)

    def peer(name: str, start: Start) -> Candidate:
        return Local(name, size, start)

    def vector(variant: str) -> Candidate:
        start = partial(vectors.async_vector, f"sum_list{variant}")
        return peer(f"async_vector_env{variant}", start)

    return [
        peer("bare_socketpair", echoes.echoes),
        own(first),
        vector(""),
        *(own(mode) for mode in others),
        peer("sync_vector_env", partial(vectors.sync_vector, "sum_list")),
        peer("multiprocessing_pool", pools.multiprocessing_pool),
        peer("pebble", pools.pebble_pool),
        own(first, "_slow"),
        vector("_slow"),
        own(first, "_long_tail"),
        vector("_long_tail"),
        peer("serialise_fork_step", serialise.servers),
        peer("least_serialise_fork_step", serialise.forks),
        Apart("ray_actors", scale.ray_actors),
    ]


def other_sizes(scale: Scale) -> list[Candidate]:
    """Ours with few and with many sessions."""
    return [
        Local(mode.name, size, partial(ours.sessions, mode, "sum_list"))
        for size in scale.other_sizes
        for mode in ours.MODES
    ]


def _measure(one: Candidate, seconds: float, progress: Console, when: str) -> None:
    """Measure a system once more, unless it turned out that it cannot be."""
    if one.skipped:
        return
    what = f"{when}: {one.name}, {one.size} sessions"
    try:
        measured = one.measure(seconds)
    except SystemMissingError as error:
        one.skipped = str(error)
        progress.print(f"{what}: skipped: {error}", highlight=False)
        return
    one.found.append(measured)
    progress.print(f"{what}: {measured.steps_per_s:,.0f} steps/s", highlight=False)
