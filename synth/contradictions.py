"""`check`: settings of a recipe that contradict each other, said before hours of work go by."""

from pathlib import Path

from configs.load import ConfigError
from configs.synth import SynthRecipe


def check(recipe: SynthRecipe) -> None:
    """Raise ConfigError for what can only end without a pool, or without what was asked for. Blocks."""
    filters, verify, split = recipe.filters, recipe.verify, recipe.split
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
    if split.validation + split.test >= 1:
        raise ConfigError(
            f"split.validation={split.validation:g} and split.test={split.test:g} leave nothing to train "
            "on: lower one"
        )
    for name, value in (("stronger", filters.stronger), ("base_url", filters.base_url)):
        if value and not filters.model:
            raise ConfigError(
                f"filters.{name}={value!r} does nothing without filters.model: name the model whose pass "
                "rate is measured"
            )
    for name, value in (("model", filters.model), ("stronger", filters.stronger)):
        if value and not filters.base_url and not (Path(value) / "config.json").is_file():
            raise ConfigError(
                f"filters.{name}={value!r} is no directory of a model: name one, or set filters.base_url"
            )
