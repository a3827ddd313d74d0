"""Which rollouts are worth imitating (rejection sampling), and each of them as chat messages.

    rollouts -- offer, one by one --> Choice --> those kept, and how many were left out for what

Nothing is played or judged again: the environment's verdict stands.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from configs.sft import Message, MessagesRow, RolloutsRecipe, SampledRow
from envpool.task import Split, Task, config_split
from rollout import toolcall
from rollout.files import RolloutRow

Schemas = list[dict[str, Any]]


class Left(StrEnum):
    """Why a rollout is not imitated; each counts under the first of these that holds."""

    EVALUATION = "of the evaluation side"
    """Its configuration is kept for evaluation, or it was played for one."""
    FAULT = "without a verdict"
    LOW = "below rollouts.min_reward"
    REPEATED = "the same, call by call, as another of its task"
    MANY = "beyond rollouts.per_task"
    GONE = "whose environment is not what it was"
    """Its pool cannot be served as it was, or shows the task in other words."""


class Choice:
    """Chooses among rollouts as `recipe` says."""

    def __init__(self, recipe: RolloutsRecipe) -> None:
        self._recipe = recipe
        self._tasks: dict[str, dict[tuple[object, ...], RolloutRow]] = {}
        self.left: Counter[Left] = Counter()
        """How many were left out, by reason."""
        self.num_offered = 0

    def offer(self, row: RolloutRow, *, is_evaluation: bool) -> None:
        """Consider a rollout. `is_evaluation`: it was played to evaluate, whatever its configuration."""
        self.num_offered += 1
        if reason := self._why_not(row, is_evaluation=is_evaluation):
            self.left[reason] += 1
            return
        task = self._tasks.setdefault(row.task_id, {})
        moves = tuple((turn.action, turn.reply, turn.observation) for turn in row.turns)
        key = (row.prompt, *moves)
        if key in task:
            self.left[Left.REPEATED] += 1
            # Of two alike, the one whose tokens are known.
            if row.rows and not task[key].rows:
                task[key] = row
        else:
            task[key] = row

    def chosen(self) -> list[RolloutRow]:
        """Those to imitate, task by task; to be called once, after the last `offer`."""
        kept: list[RolloutRow] = []
        for task in self._tasks.values():
            rows = list(task.values())
            if self._recipe.choose == "shortest":
                rows.sort(key=_length)
            number = self._recipe.per_task or len(rows)
            kept += rows[:number]
            self.left[Left.MANY] += len(rows[number:])
        return kept

    def _why_not(self, row: RolloutRow, *, is_evaluation: bool) -> Left | None:
        is_apart = is_evaluation or config_split(row.env, row.config) is Split.EVAL
        if is_apart and not self._recipe.evaluation:
            return Left.EVALUATION
        if row.reward is None or not row.turns:
            return Left.FAULT
        if row.reward < self._recipe.min_reward:
            return Left.LOW
        return None


def demonstration(row: RolloutRow, tools: Schemas) -> MessagesRow:
    """A rollout as chat messages: the task, then replies and observations in turn."""
    messages = [Message(role="user", content=row.prompt)]
    for turn in row.turns:
        reply = toolcall.render(turn.action) if turn.reply is None else turn.reply
        messages.append(Message(role="assistant", content=reply))
        messages.append(Message(role="tool", content=turn.observation))
    return MessagesRow(
        env=row.env,
        messages=messages[:-1],  # nobody replies to the last observation
        tools=tools,
        reward=row.reward or 0.0,
        task=row.task_id,
        sampled=[
            SampledRow(token_ids=one.token_ids_bytes, mask=one.mask_bytes) for one in row.rows
        ],
    )


def demonstrations(
    rows: Iterable[RolloutRow], shown: Mapping[str, tuple[str, Schemas]], left: Counter[Left]
) -> list[MessagesRow]:
    """The rollouts whose task is still shown as it was. `shown`: prompt and tools, by task."""
    made: list[MessagesRow] = []
    for row in rows:
        prompt, tools = shown.get(row.task_id, (None, []))
        if prompt == row.prompt:
            made.append(demonstration(row, tools))
        else:
            left[Left.GONE] += 1
    return made


def merged(rows: Iterable[MessagesRow], recipe: RolloutsRecipe) -> list[MessagesRow]:
    """Demonstrations of several sources, chosen from once more: two may have the same task.

    Those that name no task are all kept.
    """
    kept: list[MessagesRow] = []
    tasks: dict[str, list[MessagesRow]] = {}
    for row in rows:
        if not row.task:
            kept.append(row)
            continue
        task = tasks.setdefault(row.task, [])
        if all(row.messages != other.messages for other in task):
            task.append(row)
    for task in tasks.values():
        if recipe.choose == "shortest":
            task.sort(key=lambda row: len(row.messages))
        kept += task[: recipe.per_task or None]
    return kept


def task_of(row: RolloutRow) -> Task:
    """The task that was played."""
    return Task(
        pool=row.pool, pool_version=row.pool_version, env=row.env, config=row.config, seed=row.seed
    )


def _length(row: RolloutRow) -> tuple[int, int]:
    return len(row.turns), sum(turn.num_reply_tokens for turn in row.turns)
