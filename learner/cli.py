"""Commands of the learner that run by themselves."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import transformers

from configs.load import convert, folders, make_importable, read
from configs.sft import MessagesRow, SftRecipe, TraceRecipe
from learner.sft import check_output, train

DEFAULT_RECIPE = "tiny_policy/recipe.toml"


def sft(arguments: Sequence[str], generate: Callable[[TraceRecipe], Sequence[MessagesRow]]) -> int:
    """`sft [recipe.toml ...] [a.b=value ...]`: warm-start a policy on the traces of `generate`.

    Without a recipe file the tiny policy's is used. Raises ConfigError for a user's mistake.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.utils.logging.disable_progress_bar()
    has_file = any(argument.endswith(".toml") and "=" not in argument for argument in arguments)
    recipe = convert(read([*([] if has_file else [DEFAULT_RECIPE]), *arguments]), SftRecipe)
    make_importable(folders(arguments))
    check_output(Path(recipe.out), overwrite=recipe.overwrite)
    train(generate(recipe.traces), recipe)
    return 0
