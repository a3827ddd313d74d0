"""`launch.py synth`: problems in, a pool out; and `launch.py synth audit`."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from configs.load import ConfigError, convert, read
from configs.synth import DEFAULT_RECIPE, SynthRecipe
from rollout.rundir import claimed, command_line, short
from rollout.supervise import root_cause
from synth import audit, contradictions, progress
from synth.chat import EndpointError
from synth.court import Court
from synth.export import MANIFEST, read_manifest
from synth.llm.synthesizer import Synthesizer
from synth.pipeline import WORK, Factory
from synth.player import PlayerError
from synth.readers import read as read_problems
from synth.report import Report

EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130
# The batch request file that `llm.batch=write` leaves.
BATCH = "batch_requests.jsonl"
# Reasons that are told where nothing passed.
MAX_REASONS = 5
# How failures end the factory that are neither a bug nor a mistake in the recipe.
_FAILURES = (OSError, EndpointError, PlayerError)

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """`synth [recipe.toml ...] [a.b=value ...]`, or `synth audit DIR`; returns the exit code.

    Raises ConfigError for a user's mistake.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "httpx2", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if arguments[:1] == ["audit"]:
        return audit.main(arguments[1:])
    files = [word for word in arguments if word.endswith(".toml") and "=" not in word]
    given = [*([] if files else [DEFAULT_RECIPE]), *arguments]
    recipe = convert(read(given), SynthRecipe)
    contradictions.check(recipe)
    out = _prepared(recipe)
    again = command_line("synth", *arguments)
    with claimed(out):
        try:
            return asyncio.run(_run(recipe, out))
        except KeyboardInterrupt:
            logger.warning("interrupted: what is finished is kept; to go on: %s", again)
            return EXIT_INTERRUPTED
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, ConfigError):
                raise cause from error
            if not isinstance(cause, _FAILURES):
                raise
            logger.error("error: %s", cause)  # noqa: TRY400 - it is no bug: the text says it all
            logger.error("what is finished is kept; to go on: %s", again)  # noqa: TRY400
            return EXIT_FAILED


async def _run(recipe: SynthRecipe, out: Path) -> int:
    logger.info("factory: writes to %s (out=DIR chooses another)", short(out))
    if recipe.llm.enabled and recipe.llm.batch == "write":
        return await _write_batch(recipe, out)
    with progress.shown() as stages:
        async with Court(recipe.verify) as court, _asking(recipe, out) as asking:
            report = await Factory(recipe, out, court, stages, asking).run()
            if asking is not None:
                logger.info("model %s: %s", recipe.llm.model, asking.usage)
    _closing(report, out)
    return EXIT_DONE if report.tasks else EXIT_FAILED


@asynccontextmanager
async def _asking(recipe: SynthRecipe, out: Path) -> AsyncIterator[Synthesizer | None]:
    if not recipe.llm.enabled:
        yield None
        return
    async with Synthesizer(recipe.llm, out) as asking:
        if recipe.llm.batch == "read":
            problems, _ = await asyncio.to_thread(read_problems, recipe.problems)
            await asking.read_batch(problems)
        yield asking


async def _write_batch(recipe: SynthRecipe, out: Path) -> int:
    problems, refusals = await asyncio.to_thread(read_problems, recipe.problems)
    for refusal in refusals:
        logger.warning("%s: %s", refusal.reason, refusal.detail)
    path = out / BATCH
    async with Synthesizer(recipe.llm, out) as asking:
        count = await asking.write_batch(problems, path)
    logger.info("%d requests: %s", count, path)
    logger.info("send it; then run this again with llm.batch=read llm.replies=FILE")
    return EXIT_DONE


def _prepared(recipe: SynthRecipe) -> Path:
    """The output directory: a new one, an empty one, or one that the factory works in."""
    name = recipe.out
    if not name:
        raise ConfigError("out='' names no directory: choose one, e.g. out=runs/synth")
    out = Path(name).expanduser().absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
        is_ours = (out / WORK).is_dir() or (out / MANIFEST).is_file()
        if not is_ours and any(out.iterdir()):
            raise ConfigError(
                f"out={name!r} holds something that the factory did not write: choose a new directory"
            )
        (out / WORK).mkdir(exist_ok=True)
        _check_same(recipe, out)
    except OSError as error:
        raise ConfigError(f"out={name!r} cannot be written to: {error}") from error
    return out


def _check_same(recipe: SynthRecipe, out: Path) -> None:
    """Raise ConfigError where a result of other settings would be replaced."""
    manifest = read_manifest(out)
    if manifest is None:
        return
    before, now = (msgspec.to_builtins(one) for one in (manifest.recipe, recipe))
    # Where it lies, and how fast it was made, is no matter of content.
    changed = sorted(name for name in now if before.get(name) != now[name])
    changed = [name for name in changed if name not in ("out", "workers")]
    if changed:
        raise ConfigError(
            f"out={recipe.out!r} holds a finished result of another recipe ({', '.join(changed)}): choose "
            "a new directory, or remove that one"
        )


def _closing(report: Report, out: Path) -> None:
    """Say what there is now, and what to do with it."""
    if not report.tasks:
        why = Counter(f"{one.stage}: {one.reason}" for one in report.refusals).most_common(
            MAX_REASONS
        )
        reasons = ", ".join(f"{reason} ({count})" for reason, count in why)
        logger.warning("none of %d problems gave an environment: %s", report.problems, reasons)
        return
    wrong = {
        "wrong references": report.audit.references_wrong,
        "won by looking only": report.audit.observe_only_wins,
        "answers shown": report.audit.answer_leaks,
        "duplicates": report.audit.duplicates,
    }
    logger.info(
        "%d environments and %d tasks of %d problems; %.0f %% of environments change state",
        report.envs,
        report.tasks,
        report.problems,
        100 * report.state_changing_share,
    )
    logger.info("audit: %s", ", ".join(f"{count} {what}" for what, count in wrong.items()))
    logger.info("report: %s", short(out / "report.html"))
    if not (out / "eval.toml").exists():
        logger.info(
            "there are too few concepts for a test side: nothing is set apart to measure on"
        )
    if (out / "train.toml").exists():
        command = command_line("MY_RECIPE.toml", short(out / "train.toml"), "model.path=MY_MODEL")
        logger.info("next:\n  %s", command)
