"""Millrace's command line: `python launch.py [command] [files.toml] [a.b=value]`.

`train` (the default) places actors and a learner on a Ray cluster and runs the coordinator here:

    config -> checked config -> run directory -> processes -> coordinator -> summary -> report -> exit code

Exit codes: 0 done, 1 the run failed, 2 the configuration is wrong, 130 interrupted. No algorithm
lives here, and no type: what is defined in `__main__` does not cross Ray.
"""

import asyncio
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rollout.run import Checked
    from rollout.summary import Summary
    from rollout.terminal import Screen

BENCHES = {
    "engine": "rollout.bench.engine",
    "envpool": "envpool.bench.cli",
    "overlap": "rollout.bench.overlap",
    "sync": "rollout.bench.sync",
    "learning": "rollout.bench.learning",
    "cost": "rollout.bench.cost",
    "learner": "learner.bench.cli",
    "curriculum": "rollout.bench.curriculum",
    "staleness": "rollout.bench.staleness",
}

COMMANDS = ("train", "eval", "synth", "sft", "bench", "show", "report", "pool", "control")

# Imported where the learner runs: the driver never loads torch.
TRAINER = "learner.trainer:make_trainer"

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

logger = logging.getLogger("launch")


def main(argv: Sequence[str]) -> int:
    """Run a command; returns the exit code."""
    arguments = list(argv)
    asks = [word in ("--help", "-h", "help") for word in arguments]
    # Each benchmark has help of its own.
    is_one_bench = arguments[:1] == ["bench"] and not any(asks[1:2])
    if any(asks) and not is_one_bench:
        return give_help(arguments)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "train"
    try:
        from configs.load import ConfigError
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"error: {error.name} is not installed for {sys.executable}: `make venv` sets up .venv "
            "with all that is needed; then use .venv/bin/python launch.py\n"
        )
        return EXIT_USAGE

    commands = {
        "train": train,
        "eval": evaluate,
        "synth": synth,
        "sft": sft,
        "bench": bench,
        "show": show,
        "report": report,
        "pool": pool,
        "control": control,
    }
    word = argv[0] if argv else ""
    if word not in COMMANDS and word.isalpha() and (near := get_close_matches(word, COMMANDS, n=1)):
        sys.stderr.write(f"error: {word!r} is no command; did you mean {near[0]}?\n")
        return EXIT_USAGE
    try:
        return commands[command](arguments)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED


def give_help(arguments: list[str]) -> int:
    """Write what `--help` says beside the other arguments; returns the exit code."""
    from configs import help as texts

    plain = {
        "eval": texts.EVAL_HELP,
        "report": texts.REPORT_HELP,
        "bench": texts.BENCH_HELP,
        "pool": texts.POOL_HELP,
        "control": texts.CONTROL_HELP,
    }
    if arguments[0] == "show":
        from rollout import show

        text = show.HELP
    elif arguments[0] == "sft":
        from configs.describe import describe_sft

        text = texts.SFT_HELP + describe_sft()
    elif arguments[0] == "synth":
        from configs.describe import describe_synth

        text = texts.SYNTH_HELP + describe_synth()
    elif arguments[0] not in COMMANDS and "config" in arguments:
        from configs.describe import describe_settings, section_names

        words = [word for word in arguments[arguments.index("config") + 1 :] if word[0] != "-"]
        sections = [word.partition(".")[0] for word in words]
        unknown = [section for section in sections if section not in section_names()]
        if unknown:
            known = ", ".join(section_names())
            sys.stderr.write(f"error: config has no section {unknown[0]}: there are {known}\n")
            return EXIT_USAGE
        text = describe_settings(sections)
    else:
        text = plain.get(arguments[0], texts.HELP)
    sys.stdout.write(text)
    return EXIT_DONE


def train(arguments: list[str]) -> int:
    """Train as the recipe says."""
    return run(arguments, fixed=[], learns=True)


def evaluate(arguments: list[str]) -> int:
    """Play the evaluation sets with the weights of `model.path`."""
    fixed = ["learner.steps=0", "eval.before=true", "eval.every=0"]
    return run(arguments, fixed=fixed, learns=False)


def sft(arguments: list[str]) -> int:
    """Make a policy that imitates oracles, or rollouts that ended well."""
    from learner.cli import sft as command
    from synth.demonstrations import gather

    return command(arguments, gather)


def synth(arguments: list[str]) -> int:
    """Make a pool of environments from coding problems."""
    from synth.cli import main as command

    return command(arguments)


def bench(arguments: list[str]) -> int:
    """Run one benchmark."""
    from configs.load import ConfigError
    from rollout.bench.runs import RunError

    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name not in BENCHES:
        raise ConfigError(f"bench {name!r} is not known: use bench {' | '.join(BENCHES)}")
    try:
        return importlib.import_module(BENCHES[name]).main(rest)
    except RunError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED


def show(arguments: list[str]) -> int:
    """Print rollouts of a run, or list runs."""
    from rollout.show import main as command

    return command(arguments)


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


def pool(arguments: list[str]) -> int:
    """List and change the pools of a run that goes on."""
    from rollout.pool_cli import pool as command

    return command(arguments)


def control(arguments: list[str]) -> int:
    """Pause, resume, save or look at a run that goes on."""
    from rollout.pool_cli import control as command

    return command(arguments)


def run(arguments: list[str], *, fixed: list[str], learns: bool) -> int:
    """Check everything, then play a run in its own processes; `fixed` overrides what was given."""
    with ExitStack() as held:
        return run_holding(arguments, held, fixed=fixed, learns=learns)


def run_holding(arguments: list[str], held: ExitStack, *, fixed: list[str], learns: bool) -> int:
    """The same; its directory is in `held` as long as it runs."""
    from configs.load import DEFAULT_RECIPE, ConfigError, load
    from rollout import processes, rundir
    from rollout.run import check, make_report

    is_dry = "--dry-run" in arguments
    given = [argument for argument in arguments if argument != "--dry-run"]
    settings = [*given, *fixed]
    if "--resume" in given and not learns:
        raise ConfigError(
            "eval takes no --resume: name the weights, model.path=DIR/checkpoints/step_N/hf"
        )
    if "--resume" in given:
        given, run_dir = resume_directory(given)
        checked = resumed(run_dir, [*given, *fixed], held, is_dry=is_dry)
    else:
        if not any(argument.endswith(".toml") and "=" not in argument for argument in settings):
            settings.insert(0, DEFAULT_RECIPE)
        checked = check(load(settings), evaluates_every_pool=not learns)
        run_dir = rundir.prepare(checked.config)
        held.enter_context(rundir.claimed(run_dir))
    if is_dry:
        name = "config.json" if checked.resumed is None else rundir.DRY_RUN
        sys.stdout.write(f"resolved configuration: {run_dir / name}\n")
        return EXIT_DONE
    # Before anything else: whoever resumes this run while it still starts is told that it runs.
    processes.write_pids(run_dir, [processes.describe("launch")])
    # Ray reports usage, and warns about a future default, unless told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from rollout import announce
    from rollout.logs import driver_logging
    from rollout.supervise import root_cause
    from rollout.terminal import open_screen

    config = checked.config
    with (
        open_screen() as screen,
        driver_logging(run_dir, config.logging.level, terminal=screen.handler),
    ):
        try:
            summary = asyncio.run(play(checked, run_dir, screen, learns=learns))
        except (asyncio.CancelledError, KeyboardInterrupt):
            was_played = "what was played is" if (run_dir / "rollouts").exists() else "logs are"
            logger.warning("interrupted; %s in %s", was_played, run_dir)
            announce.how_to_go_on(run_dir, config)
            return EXIT_INTERRUPTED
        except Exception as error:
            cause = root_cause(error)
            logger.exception("failed: %s: %s", type(cause).__name__, cause)
            logger.info("logs of every process: %s", run_dir / "logs")
            announce.how_to_go_on(run_dir, config)
            make_report(run_dir)
            return EXIT_FAILED
        make_report(run_dir)
        announce.closing(summary, config, run_dir, given if checked.resumed is None else None)
    return EXIT_DONE if summary.ledger_balanced else EXIT_FAILED


def resume_directory(arguments: list[str]) -> tuple[list[str], Path]:
    """The other arguments, and the directory after `--resume`; raises ConfigError."""
    from configs.load import ConfigError

    at = arguments.index("--resume")
    if at + 1 == len(arguments):
        raise ConfigError("--resume needs the directory of a run: --resume runs/<run>")
    others = arguments[:at] + arguments[at + 2 :]
    if elsewhere := [word for word in others if word.startswith("run.dir=")]:
        raise ConfigError(
            f"{elsewhere[0]}: a run goes on in its own directory; copy it to have two"
        )
    return others, Path(arguments[at + 1]).expanduser().absolute()


def resumed(run_dir: Path, overrides: list[str], held: ExitStack, *, is_dry: bool) -> "Checked":
    """Where a run goes on, made ready unless `is_dry`; raises ConfigError."""
    from rollout import resume, rundir
    from rollout.run import check

    if not is_dry and run_dir.is_dir():
        held.enter_context(rundir.claimed(run_dir))
    config, point = resume.check(run_dir, overrides)
    checked = check(config, point)
    if is_dry:
        rundir.write_config(run_dir, checked.config, name=rundir.DRY_RUN)
    else:
        resume.begin(run_dir, checked.config, point)
    return checked


async def play(checked: "Checked", run_dir: Path, screen: "Screen", *, learns: bool) -> "Summary":
    """Start processes, play, and leave none behind, however it ends."""
    from rollout import announce, cluster, processes, run, weights
    from rollout.laps import Laps

    config = checked.config
    started = [processes.describe("launch")]
    laps = Laps(earlier_s=time.time() - started[0].started)
    announce.starting(run_dir, engine=config.engine.kind)
    laps.end("checks")
    this_task = asyncio.current_task()
    assert this_task is not None
    acknowledge_interrupts()
    try:
        cluster.join(config)
        laps.end("ray")
        # After ray, which sets a handler of its own.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this_task.cancel)
        placed = await cluster.place(
            config, run_dir, trainer=TRAINER if learns else None, resumed=checked.resumed
        )
        laps.end("processes")
        startup_s = laps.seconds | {
            f"{info.name}/{part}": s for info in placed.infos for part, s in info.start_s.items()
        }
        started += placed.processes
        started += processes.descendants("ray")
        processes.write_pids(run_dir, started)
        announce.opening(checked, run_dir, placed.infos, laps.seconds)
        try:
            summary = await run.play(checked, run_dir, placed, screen, startup_s=startup_s)
        finally:
            await cluster.close(placed)
    finally:
        started += processes.descendants("ray")
        cluster.leave()
        await asyncio.to_thread(processes.end, started[1:], within_s=5.0)
        # A learner that was killed leaves its files in shared memory.
        weights.sweep([Path(config.weights.dir)], weights.run_id(run_dir))
    return summary


def acknowledge_interrupts() -> None:
    """Say at once that a Ctrl-C was heard: closing everything takes seconds."""
    cancel = signal.getsignal(signal.SIGINT)
    if cancel == signal.SIG_IGN:  # as in `launch.py &` of a script
        logger.info("Ctrl-C is ignored here (a background job): kill %d ends it", os.getpid())
    if not callable(cancel):
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        logger.warning("interrupted: closing every process")
        cancel(number, frame)

    signal.signal(signal.SIGINT, on_interrupt)


def run_script() -> None:
    """Entry point of the installed command."""
    arguments = sys.argv[1:]
    # Others read this list too, and write it down: W&B does.
    sys.argv[1:] = [word for word in arguments if not word.startswith("control.token=")]
    sys.exit(main(arguments))


if __name__ == "__main__":
    run_script()
