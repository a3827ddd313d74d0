"""Runs the measurement of Ray's actors in a process of its own.

Ray leaves threads behind in the process that starts it, from which the other systems could not fork.
"""

import json
import os
import subprocess
import sys

from envpool.bench.system import Candidate, Measured, SystemMissingError

MODULE = "envpool.bench.ray_actors"
# Ray starts slowly on a busy machine.
TIMEOUT_S = 120.0


class Apart(Candidate):
    """Actors that are measured in a new process."""

    def measure(self, seconds: float) -> Measured:
        """Measure there. Raises SystemMissingError."""
        command = [sys.executable, "-m", MODULE, str(self.size), str(seconds)]
        environment = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
        }
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise SystemMissingError(f"Ray took over {TIMEOUT_S} s") from error
        if run.returncode:
            raise SystemMissingError(f"Ray failed: {run.stderr[-300:].strip()}")
        return Measured(**json.loads(run.stdout.splitlines()[-1]))
