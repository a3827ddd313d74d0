"""The pool that the default run trains on is what its recipe makes of its problems."""

import json
from collections import Counter

from configs.load import convert, find, load, read
from configs.synth import SynthRecipe
from envpool.task import Split, config_split
from synth.extract.synthesizer import drafts
from synth.readers import read as read_problems
from synth.records import Draft

POOL = find("tiny_pool/pool")


def test_its_sources_are_compiled_from_its_problems() -> None:
    recipe = convert(read(["tiny_pool/recipe.toml"]), SynthRecipe)
    problems, refused = read_problems(recipe.problems)
    assert not refused
    shipped = {path.stem: path.read_text() for path in POOL.glob("*/*.py")}
    made = {}
    for problem in problems:
        first = next(iter(drafts(problem, problem.tests, recipe.extract, configs=())))
        assert isinstance(first, Draft), first
        made[problem.id] = first.source
    assert made == shipped, "make it again: launch.py synth tiny_pool/recipe.toml"


def test_it_has_what_the_default_run_draws() -> None:
    config = load(["local.toml"])
    tasks: Counter[tuple[str, int, Split]] = Counter()
    for path in POOL.glob("*/tasks.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            tasks[row["env"], row["level"], config_split(row["env"], row["config"])] += 1
    for env in config.pools["tiny"].train:
        assert tasks[env, 0, Split.TRAIN] > 100
    for name, one in config.eval.sets.items():
        for env in one.envs:
            number = tasks[env, one.level, Split.EVAL]
            if name == "unseen":  # in a pool of split="eval"
                number += tasks[env, one.level, Split.TRAIN]
            assert number >= one.count / len(one.envs), (name, env)
