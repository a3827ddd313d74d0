"""Commands of the learner that run by themselves."""

import logging
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import transformers

from configs.load import convert, find, folders, make_importable, read
from configs.sft import MessagesRow, SftRecipe, TraceRecipe
from learner.sft import check_output, train

_log = logging.getLogger(__name__)

DEFAULT_RECIPE = "tiny_policy/recipe.toml"


def sft(arguments: Sequence[str], generate: Callable[[TraceRecipe], Sequence[MessagesRow]]) -> int:
    """`sft [recipe.toml ...] [a.b=value ...]`: warm-start a policy on the traces of `generate`.

    Without a recipe file the tiny policy's is used. Raises ConfigError for a user's mistake.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.utils.logging.disable_progress_bar()
    files = [word for word in arguments if word.endswith(".toml") and "=" not in word]
    given = [*([] if files else [DEFAULT_RECIPE]), *arguments]
    recipe = convert(read(given), SftRecipe)
    make_importable(folders(arguments))
    check_output(Path(recipe.out), overwrite=recipe.overwrite)
    begun_s = time.monotonic()
    _opening(recipe, files or [str(find(DEFAULT_RECIPE))])
    train(generate(recipe.traces), recipe)
    _log.info("policy: %s, made in %.0f s", recipe.out, time.monotonic() - begun_s)
    _log.info("next:\n  python launch.py %s", shlex.quote(f"model.path={recipe.out}"))
    return 0


def _opening(recipe: SftRecipe, files: Sequence[str]) -> None:
    """Say what is made from what, and where, before minutes pass."""
    shape, traces = recipe.policy, recipe.traces
    kind = (
        f"from the model in {recipe.base}"
        if recipe.base
        else f"new, {shape.layers} layers of {shape.hidden}"
    )
    _log.info("sft: makes a policy (%s) that imitates demonstrations", kind)
    _log.info("recipe: %s", ", ".join(files))
    _log.info("written to: %s (out=DIR chooses another)", recipe.out)
    _log.info(
        "demonstrations: %d of %s, the first %d without mistakes; playing them takes a while",
        traces.count,
        traces.source,
        traces.num_clean,
    )
