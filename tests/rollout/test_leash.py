"""Processes on a leash end with those that started them; nothing of vLLM is needed for that."""

import copy
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rollout.leash import Leash

ROOT = Path(__file__).parent.parent.parent

PROGRAM = """
import multiprocessing, os, sys, time
from rollout.leash import Leash

def work(options, depth, said):
    said.put(os.getpid())
    if depth:
        context = multiprocessing.get_context(sys.argv[1])
        context.Process(target=work, args=(options, depth - 1, said)).start()
    time.sleep(3600)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    said = context.Queue()
    context.Process(target=work, args=({"some": [Leash()]}, 1, said)).start()
    print(said.get(), said.get(), flush=True)
    time.sleep(3600)
"""


@pytest.fixture(params=["fork", "spawn"])
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[int]]:
    """A process, its child, and the child of that."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(path), request.param],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pids = [process.pid, *map(int, process.stdout.readline().split())]
        assert len(pids) == 3
        yield pids
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("place", [0, 1])
def test_they_end_with_whoever_is_above_them(family: list[int], place: int) -> None:
    ends = [os.pidfd_open(pid) for pid in family]
    os.kill(family[place], signal.SIGKILL)
    for end in ends[place:]:
        readable, _, _ = select.select([end], [], [], 60)
        assert readable == [end]
    if place:
        assert select.select(ends[:place], [], [], 0)[0] == []
    for end in ends:
        os.close(end)


def test_a_leash_holds_nobody_in_the_process_that_made_it_and_changes_no_fingerprint() -> None:
    first, second = Leash(), copy.deepcopy({"some": Leash()})
    assert json.dumps({"some": first}) == json.dumps(second) == '{"some": "leash"}'
