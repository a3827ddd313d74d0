"""What a warm start imitates: oracles' traces, or rollouts that ended well."""

from random import Random

from configs.load import ConfigError
from configs.sft import MessagesRow, SftRecipe
from rollout.successes import merged
from synth.traces import generate


def gather(recipe: SftRecipe) -> list[MessagesRow]:
    """The demonstrations in the order in which they are imitated. Raises ConfigError for none."""
    chosen = recipe.rollouts
    if not chosen.is_used:
        return generate(recipe.traces)
    rows: list[MessagesRow] = []
    # Each brings the engine or the pools: only what is asked for is imported.
    if chosen.paths:
        from rollout.logged import read_all

        rows += read_all(chosen)
    if chosen.teacher:
        from rollout.teacher import sample

        rows += sample(chosen, seed=recipe.seed)
    if not rows:
        raise ConfigError(
            f"rollouts: nothing to imitate is left: lower rollouts.min_reward={chosen.min_reward:g}, or "
            "name other rollouts"
        )
    rows = merged(rows, chosen)
    # They come task by task, and logs in the order of their policy's progress.
    Random(recipe.seed).shuffle(rows)
    return rows
