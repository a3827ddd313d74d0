"""The files of the pools that runs train on: `pool/<side>/<env>.py`, `tasks.jsonl`, and recipes for them.

A pool has bounds on its size (`envpool.folder`): what does not fit goes into `pool/<side>_2` and so on.
"""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence

import msgspec

from envpool.folder import MAX_BYTES, MAX_FILES, TASKS, TaskRow
from envpool.task import Split, config_split
from synth.records import Made
from synth.splits import Side, Splits

# Left free in a pool for what its owner may add.
_SPARE_FILES, _SPARE_BYTES = 16, 256 * 1024
# Calls beyond the longest trace that a player is given to err.
_SPARE_CALLS = 8

Files = dict[str, bytes]


def pools_of(made: Sequence[Made], splits: Splits) -> dict[str, list[Made]]:
    """The environments of each pool by its name, `train`, `train_2`...; none that is empty."""
    by_env = {one.draft.env: one for one in made}
    pools: dict[str, list[Made]] = {}
    for side in Side:
        number, room_files, room_bytes = 0, 0, 0
        for env in splits.of(side):
            one = by_env[env]
            size = len(one.draft.source.encode()) + sum(map(len, _task_lines(one)))
            if not room_files or size > room_bytes:
                number += 1
                room_files = MAX_FILES - _SPARE_FILES
                room_bytes = MAX_BYTES - _SPARE_BYTES
            room_files, room_bytes = room_files - 1, room_bytes - size
            pools.setdefault(f"{side}_{number}" if number > 1 else side.value, []).append(one)
    return pools


def pool_files(pools: Mapping[str, Sequence[Made]]) -> Files:
    """The sources and tasks of pools, by path."""
    files: Files = {}
    for pool, envs in pools.items():
        for one in envs:
            files[f"pool/{pool}/{module_name(one.draft.env)}.py"] = one.draft.source.encode()
        lines = [line for one in envs for line in _task_lines(one)]
        files[f"pool/{pool}/{TASKS}"] = b"".join(lines)
    return files


def module_name(env: str) -> str:
    """What the file of an environment is called: its id, unless a module has that name or none may."""
    if env.startswith(("_", "test_")) or not env.isidentifier():
        return f"env_{env}"  # a pool does not look at such files
    is_taken = env in sys.stdlib_module_names or importlib.util.find_spec(env) is not None
    return f"env_{env}" if is_taken else env


def recipes(pools: Mapping[str, Sequence[Made]]) -> Files:
    """`train.toml` and `eval.toml`, to be named after a run's own recipe; none for what has no tasks.

    A run keeps one in eight configurations of what it trains on for evaluation, by their hash, so that
    only those environments are trained on that have others. What it never trains on is measured whole.
    """
    of: dict[Side, dict[str, Sequence[Made]]] = {side: {} for side in Side}
    for pool, envs in pools.items():
        of[Side(pool.split("_")[0])][pool] = envs
    trained: list[str] = []
    for pool, envs in of[Side.TRAIN].items():
        names = [one.draft.env for one in envs if _has_to_train_on(one)]
        if names:
            trained += [f"[pools.{pool}]", f'source = "pool/{pool}"', f"train = {_list(names)}", ""]
    longest = max((task.num_calls for one in _all(of) for task in one.tasks), default=0)
    turns = [
        "# rollout.max_context_tokens must hold a prompt and as many turns, of which tokens only a policy's",
        "# tokenizer knows: where too few, rollouts end as context_full.",
        "[rollout]",
        f"max_turns = {longest + _SPARE_CALLS}",
        "",
    ]
    validated, tested = _measured(of[Side.VALIDATION]), _measured(of[Side.TEST])
    files: Files = {}
    if trained:
        files["train.toml"] = _text([*_HEAD, *turns, *trained, *validated])
    if tested:
        files["eval.toml"] = _text([*_HEAD, *turns, *tested])
    return files


_HEAD = [
    "# Written by `launch.py synth`. Name it after a recipe: launch.py RECIPE.toml THIS.toml",
    "",
]


def _all(of: Mapping[Side, Mapping[str, Sequence[Made]]]) -> list[Made]:
    return [one for pools in of.values() for envs in pools.values() for one in envs]


def _measured(pools: Mapping[str, Sequence[Made]]) -> list[str]:
    """Pools that are only evaluated on, and for each and each level a set of tasks.

    It has all of them where its environments have equally many, and else of each as many as of the
    one with the fewest.
    """
    lines: list[str] = []
    for pool, envs in pools.items():
        sets: list[str] = []
        for level in sorted({task.level for one in envs for task in one.tasks}):
            counts = {one.draft.env: sum(task.level == level for task in one.tasks) for one in envs}
            names = [f"{pool}/{env}" for env, count in counts.items() if count]
            if names:
                name = f"{pool}_level_{level}" if level else pool
                # Each environment is drawn from equally often, so this is no more than there are.
                total = min(count for count in counts.values() if count) * len(names)
                sets += [f"[eval.sets.{name}]", f"envs = {_list(names)}", f"level = {level}"]
                sets += [f"count = {total}", ""]
        if sets:
            lines += [f"[pools.{pool}]", f'source = "pool/{pool}"', 'split = "eval"', "", *sets]
    return lines


def _has_to_train_on(one: Made) -> bool:
    env = one.draft.env
    return any(
        task.level == 0 and config_split(env, task.config) is Split.TRAIN for task in one.tasks
    )


def _task_lines(one: Made) -> list[bytes]:
    rows = (TaskRow(env=one.draft.env, config=task.config, level=task.level) for task in one.tasks)
    return [msgspec.json.encode(row) + b"\n" for row in rows]


def _list(names: Sequence[str]) -> str:
    return json.dumps(sorted(names), indent=2) if len(names) > 4 else json.dumps(sorted(names))


def _text(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines).rstrip() + "\n").encode()
