"""`check`: settings of a recipe that contradict each other, said before hours of work go by."""

import os
from pathlib import Path

import msgspec

from configs.load import ConfigError
from configs.synth import SynthRecipe
from synth import splits
from synth.address import find_key, find_url


def check(recipe: SynthRecipe) -> None:
    """Raise ConfigError for what can only end without a pool, or without what was asked for. Blocks."""
    filters, verify = recipe.filters, recipe.verify
    if filters.min_calls > filters.max_calls:
        raise ConfigError(
            f"filters.min_calls={filters.min_calls} is over filters.max_calls={filters.max_calls}: "
            "no task is kept: lower it"
        )
    if filters.above >= filters.up_to:
        raise ConfigError(
            f"filters.above={filters.above:g} is not below filters.up_to={filters.up_to:g}: no task is "
            "kept: lower it"
        )
    if verify.configs > verify.drawn:
        raise ConfigError(
            f"verify.configs={verify.configs} is over verify.drawn={verify.drawn}: more tasks are wanted "
            "than are drawn: raise verify.drawn"
        )
    splits.check_shares(recipe.split)
    for name, value in (("stronger", filters.stronger), ("base_url", filters.base_url)):
        if value and not filters.model:
            raise ConfigError(
                f"filters.{name}={value!r} does nothing without filters.model: name the model whose pass "
                "rate is measured"
            )
    if filters.model and filters.base_url:
        find_key(filters, find_url(filters, os.environ), os.environ)
    if not filters.base_url:
        for name, value in (("model", filters.model), ("stronger", filters.stronger)):
            if value:
                _check_directory(name, value, filters.max_context_tokens)


def _check_directory(name: str, value: str, max_context_tokens: int) -> None:
    """Raise ConfigError for a model that the embedded engine could not play."""
    try:
        config = msgspec.json.decode((Path(value) / "config.json").read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"filters.{name}={value!r} is no directory of a model: name one, or set filters.base_url"
        ) from error
    limit = config.get("max_position_embeddings") if isinstance(config, dict) else None
    if isinstance(limit, int) and max_context_tokens > limit:
        raise ConfigError(
            f"filters.max_context_tokens={max_context_tokens} is more than the {limit} of the model in "
            f"filters.{name}={value!r}: lower it"
        )
