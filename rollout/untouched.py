"""What a run never trains on: environments of pools of split="eval" whose ids are trained on nowhere else.

These are evaluated on any of their configurations, all others on those of the evaluation split alone. A
configuration's split goes by the environment's id, whichever pool has it, so that nothing is trained on
and evaluated on. For the sets to be the same whenever they are drawn, an id stays trained on when its
pool is gone, and what is evaluated on any configuration cannot become trained on.
"""

from collections.abc import Callable, Collection, Mapping

from configs.schema import PoolSection
from envpool.source import Source
from envpool.task import PoolKey, Task
from rollout.refusals import Refused

# Environments by pool and id.
Untouched = Collection[tuple[str, str]]


def trained_ids(
    sections: Mapping[str, PoolSection],
    sources: Mapping[str, Source],
    earlier: Collection[str] | None = (),
) -> set[str]:
    """Ids of the environments that a run with these pools trains on, or trained on `earlier`.

    None is a run that did not write that down: all of its sets are of the evaluation split.
    """
    if earlier is None:
        return {env for source in sources.values() for env in source.envs}
    trained = {name for name in sources if sections[name].split == "train"}
    return {env for name in trained for env in sources[name].train}.union(earlier)


def untouched(
    sections: Mapping[str, PoolSection], sources: Mapping[str, Source], trained: Collection[str]
) -> set[tuple[str, str]]:
    """The environments that are evaluated on any configuration, in a run that trains on these ids."""
    return {
        (name, env)
        for name, source in sources.items()
        if sections[name].split == "eval"
        for env in source.envs
        if env not in trained
    }


def check_stays_untouched(
    source: Source,
    sets: Mapping[str, list[Task]],
    *,
    trained: Collection[str],
    is_for_evaluation: Callable[[PoolKey], bool],
) -> None:
    """Raise Refused for a pool to train on with an id that `sets` have any configurations of.

    `is_for_evaluation` knows the pools of split="eval".
    """
    new = set(source.train).difference(trained)
    for name, tasks in sets.items():
        for task in tasks:
            if task.env in new and is_for_evaluation(task.pool_key):
                also = f", or remove pool {task.pool!r} first" if name == task.pool else ""
                raise Refused(
                    f"pool {source.name!r} would train on env {task.env!r}, which evaluation set "
                    f"{name!r} has any configurations of, as pool {task.pool!r} has split='eval': leave "
                    f"it out (train: the other envs){also}, or train on it in a run of its own"
                )
