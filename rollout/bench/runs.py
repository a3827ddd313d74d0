"""Whole runs of a recipe for the benchmarks, each in processes of its own, with its progress shown."""

import argparse
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from configs.load import ConfigError

# For a benchmark of speed: nothing but training.
BARE = (
    "checkpoint.every=0",
    "eval.before=false",
    "eval.after=false",
    "eval.every=0",
    "logging.wandb=off",
)

PROGRAM = Path(__file__).parents[2] / "launch.py"

# A long run is seen to move.
_SHOW_S = 10.0
_LAST_LINES = 40
# Ctrl-C reaches the run as well, which closes its processes.
_CLOSE_S = 30.0
# What launch.py says of a wrong configuration.
_EXIT_USAGE = 2


# The pipeline fills up in the first steps, which are left out.
WARMUP_STEPS = 5
STEPS = 60


class RunError(Exception):
    """A run failed; the message ends with what it printed last."""


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """What every benchmark of a recipe takes."""
    parser = argparse.ArgumentParser(prog=f"launch.py bench {name}", description=description)
    parser.add_argument("--json", action="store_true", help="print a JSON object on the last line")
    parser.add_argument("--keep", metavar="DIR", help="keep what is run in this new directory")
    parser.add_argument("settings", nargs="*", help="recipes and overrides, as of a run")
    return parser


def add_steps(parser: argparse.ArgumentParser) -> None:
    """For a benchmark of speed."""
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each run ({STEPS})")


def check_steps(steps: int) -> None:
    """Raise ConfigError where too few are left to count."""
    if steps < 2 * WARMUP_STEPS:
        raise ConfigError(f"--steps {steps}: {2 * WARMUP_STEPS} or more say something")


def play(
    run_dir: Path, settings: list[str], watch: Callable[[int, str], None] | None = None
) -> None:
    """Run `launch.py` with `settings` into `run_dir`; every ten seconds a line of its to stderr.

    `watch` gets the pid of the run and each of its lines. Raises ConfigError for wrong settings, and
    RunError when it failed.
    """
    command = [sys.executable, str(PROGRAM), *settings, f"run.dir={run_dir}"]
    last: deque[str] = deque(maxlen=_LAST_LINES)
    shown = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last.append(line)
                if watch is not None:
                    watch(process.pid, line)
                if time.monotonic() - shown > _SHOW_S:
                    shown = time.monotonic()
                    sys.stderr.write(f"{run_dir.name}: {line}")
        except KeyboardInterrupt:
            process.wait(_CLOSE_S)
            raise
    if process.returncode == _EXIT_USAGE:
        raise ConfigError("".join(last).strip().removeprefix("error: "))
    if process.returncode:
        raise RunError(f"the run {run_dir.name} failed:\n{''.join(last)}")
