"""Waiting for what a process of its own does."""

import subprocess
import time
from collections.abc import Callable


def wait(process: "subprocess.Popen[str]", is_so: Callable[[], bool]) -> None:
    """Wait for what a run does, which must go on meanwhile."""
    deadline = time.monotonic() + 120
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)  # another process: nothing here to wait on
