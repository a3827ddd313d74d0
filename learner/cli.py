"""Commands of the learner that run by themselves."""

import logging
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import transformers

from configs.load import ConfigError, convert, find, folders, make_importable, read
from configs.sft import MessagesRow, SftRecipe
from learner.sft import check_output, resume, train

_log = logging.getLogger(__name__)

DEFAULT_RECIPE = "tiny_policy/recipe.toml"


def sft(arguments: Sequence[str], gather: Callable[[SftRecipe], Sequence[MessagesRow]]) -> int:
    """`sft [recipe.toml ...] [a.b=value ...]`: warm-start a policy on the demonstrations of `gather`.

    Without a recipe file the tiny policy's is used. `sft --resume DIR` goes on with one that was stopped.
    Raises ConfigError for a user's mistake.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.utils.logging.disable_progress_bar()
    begun_s = time.monotonic()
    if "--resume" in arguments:
        recipe = resume(_resumed(arguments))
    else:
        files = [word for word in arguments if word.endswith(".toml") and "=" not in word]
        given = [*([] if files else [DEFAULT_RECIPE]), *arguments]
        recipe = convert(read(given), SftRecipe)
        make_importable(folders(arguments))
        check_output(Path(recipe.out), overwrite=recipe.overwrite)
        _opening(recipe, files or [str(find(DEFAULT_RECIPE))])
        train(gather(recipe), recipe)
    _log.info("policy: %s, made in %.0f s", recipe.out, time.monotonic() - begun_s)
    _log.info("next:\n  python launch.py %s", shlex.quote(f"model.path={recipe.out}"))
    return 0


def _resumed(arguments: Sequence[str]) -> Path:
    """The directory after `--resume`; raises ConfigError for anything beside it."""
    if len(arguments) != 2 or arguments[0] != "--resume":
        raise ConfigError(
            "sft --resume takes the directory of a warm start and nothing else, as its recipe is kept "
            "there: sft --resume runs/my_policy"
        )
    return Path(arguments[1]).expanduser()


def _opening(recipe: SftRecipe, files: Sequence[str]) -> None:
    """Say what is made from what, and where, before minutes pass."""
    shape, traces, rollouts = recipe.policy, recipe.traces, recipe.rollouts
    kind = (
        f"from the model in {recipe.base}"
        if recipe.base
        else f"new, {shape.layers} layers of {shape.hidden}"
    )
    _log.info("sft: makes a policy (%s) that imitates demonstrations", kind)
    _log.info("recipe: %s", ", ".join(files))
    _log.info("written to: %s (out=DIR chooses another)", recipe.out)
    if rollouts.paths:
        _log.info("demonstrations: rollouts that ended well, of %s", ", ".join(rollouts.paths))
    if rollouts.teacher:
        _log.info(
            "demonstrations: %s plays %d tasks, %d times each; what ends well is imitated",
            rollouts.teacher,
            rollouts.tasks,
            rollouts.samples,
        )
    if not rollouts.is_used:
        _log.info(
            "demonstrations: %d of %s, the first %d without mistakes; playing them takes a while",
            traces.count,
            traces.source,
            traces.num_clean,
        )
