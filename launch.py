"""Millrace's command line: `python launch.py [command] [recipe.toml ...] [section.field=value ...]`.

`train` (the default) places actors and a learner on a Ray cluster and runs the coordinator here:

    config -> checked config -> run directory -> processes -> coordinator -> summary -> report -> exit code

Exit codes: 0 done, 1 the run failed, 2 the configuration is wrong, 130 interrupted. No algorithm
lives here, and no type: what is defined in `__main__` does not cross Ray.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rollout.run import Checked

HELP = """\
usage: python launch.py [command] [recipe.toml ...] [section.field=value ...]

commands
  train   train a policy (the default; recipe: configs/local.toml)
  eval    play evaluation sets with fixed weights (model.path=DIR)
  sft     warm-start a policy from oracle traces (recipe: configs/tiny_policy/recipe.toml)
  bench   measure: bench engine | bench envpool   [--json]
  report  make DIR/report.html of a run: report DIR   (a run makes its own when it ends)

options
  --help      this text        --help config   every setting, its default and its meaning
  --dry-run   write the resolved configuration to the run directory and stop

Recipes and overrides merge in the order given; later wins. Examples:
  python launch.py
  python launch.py learner.steps=40 run.dir=runs/short logging.wandb=off
  python launch.py configs/local.toml my_cluster.toml cluster.address=auto
"""

COMMANDS = ("train", "eval", "sft", "bench", "report")

# Imported where the learner runs: the driver never loads torch.
TRAINER = "learner.trainer:make_trainer"

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

logger = logging.getLogger("launch")


def main(argv: Sequence[str]) -> int:
    """Run a command; returns the exit code."""
    arguments = list(argv)
    if any(word in ("--help", "-h", "help") for word in arguments):
        from configs.describe import describe_settings

        sys.stdout.write(describe_settings() if "config" in arguments else HELP)
        return EXIT_DONE
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "train"
    from configs.load import ConfigError

    try:
        commands = {
            "train": train,
            "eval": evaluate,
            "sft": sft,
            "bench": bench,
            "report": report,
        }
        return commands[command](arguments)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED


def train(arguments: list[str]) -> int:
    """Train as the recipe says."""
    return run(arguments, learns=True)


def evaluate(arguments: list[str]) -> int:
    """Play the evaluation sets with the weights of `model.path`."""
    return run([*arguments, "learner.steps=0", "eval.before=true"], learns=False)


def sft(arguments: list[str]) -> int:
    """Warm-start a policy from oracle traces."""
    from learner.cli import sft as command
    from synth.traces import generate

    return command(arguments, generate)


def bench(arguments: list[str]) -> int:
    """Run one benchmark."""
    from configs.load import ConfigError

    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name == "engine":
        from rollout.bench import main as command
    elif name == "envpool":
        from envpool.bench import main as command
    else:
        raise ConfigError(f"bench {name!r} is not known: use bench engine or bench envpool")
    return command(rest)


def report(arguments: list[str]) -> int:
    """Make the report of a run, whether it ended well, ended early or still plays."""
    from configs.load import ConfigError

    if len(arguments) != 1:
        raise ConfigError(f"report takes one run directory, not {arguments}: launch.py report DIR")
    from rollout.report import page

    try:
        path = page.write(Path(arguments[0]))
    except OSError as error:
        sys.stderr.write(f"error: the report cannot be written: {error}\n")
        return EXIT_FAILED
    sys.stdout.write(f"{path}\n")
    return EXIT_DONE


def run(arguments: list[str], *, learns: bool) -> int:
    """Check everything, then play a run in its own processes."""
    from configs.load import load
    from rollout import rundir
    from rollout.run import check, make_report

    is_dry = "--dry-run" in arguments
    settings = [argument for argument in arguments if argument != "--dry-run"]
    if not any(argument.endswith(".toml") and "=" not in argument for argument in settings):
        settings.insert(0, "local.toml")
    checked = check(load(settings))
    run_dir = rundir.prepare(checked.config)
    if is_dry:
        sys.stdout.write(f"resolved configuration: {run_dir / 'config.json'}\n")
        return EXIT_DONE
    # Ray reports usage, and warns about a future default, unless told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from rollout.logs import driver_logging
    from rollout.supervise import root_cause

    with driver_logging(run_dir, checked.config.logging.level):
        try:
            is_sound = asyncio.run(play(checked, run_dir, learns=learns))
        except (asyncio.CancelledError, KeyboardInterrupt):
            logger.warning("interrupted; what was played is in %s", run_dir)
            logger.info("to read it: python launch.py report %s", run_dir)
            return EXIT_INTERRUPTED
        except Exception as error:
            cause = root_cause(error)
            logger.exception("failed: %s: %s", type(cause).__name__, cause)
            logger.info("logs of every process: %s", run_dir / "logs")
            make_report(run_dir)
            return EXIT_FAILED
        make_report(run_dir)
    return EXIT_DONE if is_sound else EXIT_FAILED


async def play(checked: "Checked", run_dir: Path, *, learns: bool) -> bool:
    """Start processes, play, and leave none behind, however it ends; whether the ledger balanced."""
    from rollout import cluster, processes, run, weights

    config = checked.config
    started = [processes.describe("launch")]
    try:
        cluster.join(config)
        this_task = asyncio.current_task()
        assert this_task is not None
        # After ray, which sets a handler of its own.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this_task.cancel)
        placed = await cluster.place(config, run_dir, trainer=TRAINER if learns else None)
        started += [process for info in placed.infos for process in info.processes]
        started += processes.descendants("ray")
        processes.write_pids(run_dir, started)
        run.announce(checked, run_dir, placed.infos)
        try:
            summary = await run.play(checked, run_dir, placed)
        finally:
            await cluster.close(placed)
    finally:
        started += processes.descendants("ray")
        cluster.leave()
        await asyncio.to_thread(processes.end, started[1:], within_s=5.0)
        # A learner that was killed leaves its files in shared memory.
        weights.sweep([Path(config.weights.dir)], weights.run_id(run_dir))
    run.conclude(summary, run_dir)
    return summary.ledger_balanced


def run_script() -> None:
    """Entry point of the installed command."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run_script()
