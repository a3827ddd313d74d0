"""Which verified environments and tasks are kept: by tools, by calls, by how often a model wins them."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from configs.synth import FilterRecipe
from envpool.task import config_digest
from synth.records import Made, MadeTask, PassRate, Refusal

STAGE, RATE_STAGE = "filter", "pass rate"

# Pass rates by task: `task_key(env, task)`.
Rates = Mapping[str, PassRate]


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """A task that nobody was seen to win: too hard, or wrong in a way that no check found."""

    env: str
    problem: str
    task: MadeTask
    reason: str


class Filtered(msgspec.Struct, frozen=True, kw_only=True):
    """What a filter leaves."""

    kept: tuple[Made, ...]
    quarantined: tuple[Quarantined, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def task_key(env: str, task: MadeTask) -> str:
    """What a task's pass rate is kept under."""
    return config_digest(env, task.config)


def by_shape(made: Sequence[Made], recipe: FilterRecipe) -> Filtered:
    """Environments with enough tools, and of these the tasks whose calls are within the window."""
    kept: list[Made] = []
    refusals: list[Refusal] = []
    for one in made:
        if len(one.tools) < recipe.min_tools:
            cure = f"filters.min_tools={len(one.tools)} would keep it"
            detail = (
                f"{len(one.tools)} tools, `done` among them; {recipe.min_tools} are wanted: {cure}"
            )
            refusals.append(_refusal(one, "few tools", detail))
            continue
        tasks = []
        for task in one.tasks:
            if task.num_calls < recipe.min_calls:
                detail = f"won in {task.num_calls} calls; filters.min_calls={recipe.min_calls}"
                refusals.append(_refusal(one, "few calls", detail, task))
            elif task.num_calls > recipe.max_calls:
                detail = f"won in {task.num_calls} calls; filters.max_calls={recipe.max_calls}"
                refusals.append(_refusal(one, "many calls", detail, task))
            else:
                tasks.append(task)
        _keep(one, tasks, kept, refusals)
    return Filtered(kept=tuple(kept), refusals=tuple(refusals))


def with_rates(made: Sequence[Made], rates: Rates) -> tuple[Made, ...]:
    """The same environments, their tasks with the pass rates that were measured."""
    return tuple(
        msgspec.structs.replace(
            one,
            tasks=tuple(
                msgspec.structs.replace(
                    task, pass_rate=rates.get(task_key(one.draft.env, task), task.pass_rate)
                )
                for task in one.tasks
            ),
        )
        for one in made
    )


def unsolved(made: Iterable[Made]) -> list[tuple[Made, MadeTask]]:
    """Tasks that were measured and never won: what a stronger model is asked about."""
    return [
        (one, task)
        for one in made
        for task in one.tasks
        if task.pass_rate is not None and not task.pass_rate.won
    ]


def by_pass_rate(
    made: Sequence[Made], recipe: FilterRecipe, stronger: Rates | None = None
) -> Filtered:
    """Tasks whose pass rate is in the band, where one is measured at all.

    Those that were never won, or not measured, are quarantined, unless `stronger` holds a win of a stronger
    model. An environment without a task that is kept is refused.
    """
    if not recipe.model:
        return Filtered(kept=tuple(made))
    kept: list[Made] = []
    quarantined: list[Quarantined] = []
    refusals: list[Refusal] = []
    for one in made:
        tasks = []
        for task in one.tasks:
            rate = task.pass_rate
            better = (stronger or {}).get(task_key(one.draft.env, task))
            if rate is None:
                quarantined.append(_quarantined(one, task, "not measured"))
            elif not rate.won and (better is None or not better.won):
                quarantined.append(_quarantined(one, task, "never won"))
            elif rate.won and rate.rate > recipe.up_to:
                detail = f"won {rate.won} of {rate.samples}; filters.up_to={recipe.up_to}"
                refusals.append(_refusal(one, "too easy", detail, task, stage=RATE_STAGE))
            elif rate.won and rate.rate <= recipe.above:
                detail = f"won {rate.won} of {rate.samples}; filters.above={recipe.above}"
                refusals.append(_refusal(one, "too hard", detail, task, stage=RATE_STAGE))
            else:
                tasks.append(task)
        _keep(one, tasks, kept, refusals, stage=RATE_STAGE)
    return Filtered(kept=tuple(kept), quarantined=tuple(quarantined), refusals=tuple(refusals))


def _keep(
    one: Made,
    tasks: Sequence[MadeTask],
    kept: list[Made],
    refusals: list[Refusal],
    *,
    stage: str = STAGE,
) -> None:
    if tasks:
        kept.append(msgspec.structs.replace(one, tasks=tuple(tasks)))
        return
    detail = f"of {len(one.tasks)} tasks none is kept: see the refusals of its tasks"
    refusals.append(_refusal(one, "no task left", detail, stage=stage))


def _quarantined(one: Made, task: MadeTask, reason: str) -> Quarantined:
    return Quarantined(env=one.draft.env, problem=one.draft.problem, task=task, reason=reason)


def _refusal(
    one: Made, reason: str, detail: str, task: MadeTask | None = None, *, stage: str = STAGE
) -> Refusal:
    return Refusal(
        problem=one.draft.problem,
        env=one.draft.env,
        config=task.config if task is not None else None,
        stage=stage,
        reason=reason,
        detail=detail,
    )
