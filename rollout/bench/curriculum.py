"""`python launch.py bench curriculum`: what each `rollout.draw` spends on a policy that is simulated.

Environments begin between mastered and out of reach. A group of tasks passed now and then makes the
policy better at its environment, and a little at all others; a group without signal teaches nothing, is
played and thrown away. Tasks are drawn by the real curriculum; nothing else of a run is here, so that
this compares draws with each other and says nothing about a real policy: `bench learning` does.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random

import msgspec
from rich.console import Console
from rich.table import Table

from configs.load import ConfigError, load
from configs.schema import RolloutSection
from envpool.task import Config, PoolKey, Split, Task, config_split
from rollout.curriculum import Curriculum, Share

DRAWS = ("uniform", "band", "adaptive", "signal")
SEEDS = "0,1,2"
NUM_ENVS, NUM_TASKS = 40, 24
# Log odds to fail, of the easiest and the hardest environment before training; spread of its tasks.
EASIEST, HARDEST, SPREAD = -2.0, 8.0, 1.0
# Log odds gained by a group of which half the members pass, and what of it all others gain.
GAIN, TRANSFER = 0.15, 0.01
GOAL = 0.8


class Levels:
    """A pool of environments of growing difficulty, each with a list of tasks."""

    name = "levels"
    version = "0"
    file = ""

    def __init__(self, seed: int) -> None:
        rng = Random(f"levels/{seed}")
        step = (HARDEST - EASIEST) / (NUM_ENVS - 1)
        self.train = tuple(f"env_{index}" for index in range(NUM_ENVS))
        self.envs = self.train
        self.hardness = {env: EASIEST + step * index for index, env in enumerate(self.train)}
        self.offsets = {
            env: {
                number: rng.gauss(0, SPREAD)
                for number in range(2 * NUM_TASKS)
                if config_split(env, {"number": number}) is Split.TRAIN
            }
            for env in self.train
        }

    @property
    def key(self) -> PoolKey:
        return PoolKey(self.name, self.version)

    def draw(self, env_id: str, rng: Random, split: Split | None, level: int = 0) -> Config:
        assert split is Split.TRAIN and level == 0
        return {"number": rng.choice(list(self.offsets[env_id]))}

    def count(self, env_id: str, split: Split | None, level: int = 0) -> int:
        assert split is Split.TRAIN and level == 0
        return len(self.offsets[env_id])

    def task(self, env_id: str, config: Config, seed: int) -> Task:
        return Task(pool=self.name, pool_version=self.version, env=env_id, config=config, seed=seed)


class Learner:
    """A policy as skills: log odds gained by environment."""

    def __init__(self, levels: Levels) -> None:
        self._levels = levels
        self._own = dict.fromkeys(levels.train, 0.0)
        self._shared = 0.0

    def rate(self, env: str, number: int) -> float:
        """Chance to pass a task."""
        gained = self._own[env] + self._shared
        odds = gained - self._levels.hardness[env] - self._levels.offsets[env][number]
        return 1 / (1 + math.exp(-odds))

    def mean_rate(self) -> float:
        """Over environments and their tasks."""
        offsets = self._levels.offsets
        return statistics.fmean(
            statistics.fmean(self.rate(env, number) for number in offsets[env]) for env in offsets
        )

    def train(self, env: str, rewards: Sequence[float]) -> None:
        """Learn of a group: the most where half of it passed."""
        mean = statistics.fmean(rewards)
        gained = GAIN * 4 * mean * (1 - mean)
        self._own[env] += (1 - TRANSFER) * gained
        self._shared += TRANSFER * gained


@dataclass(slots=True, kw_only=True, frozen=True)
class Course:
    """What one draw came to."""

    signal_frac: float
    """Share of the groups played that had signal."""
    groups: int
    """Groups played until the mean pass rate was the goal, or all that were played."""
    steps: int
    """Optimizer steps in these: only groups with signal are trained on."""
    rate: float
    """The mean pass rate then."""


def play(rollout: RolloutSection, *, seed: int, max_groups: int) -> Course:
    """Train until the goal, one step's groups drawn before the outcome of any of them is known."""
    levels = Levels(seed)
    learner = Learner(levels)
    share = Share(source=levels, weight=1.0, envs=levels.train)
    curriculum = Curriculum({levels.key: share}, rollout, seed=seed)
    rng = Random(f"members/{seed}")
    num_groups = num_signal = 0
    while num_groups < max_groups and learner.mean_rate() < GOAL:
        played = []
        for _ in range(rollout.groups_per_step):
            task = curriculum.next().task
            rate = learner.rate(task.env, task.config["number"])
            rewards = [float(rng.random() < rate) for _ in range(rollout.group_size)]
            played.append((task, rewards))
        for task, rewards in played:
            curriculum.note(task, rewards)
            learner.train(task.env, rewards)
            num_signal += len(set(rewards)) > 1
        num_groups += len(played)
    return Course(
        signal_frac=num_signal / num_groups,
        groups=num_groups,
        steps=math.ceil(num_signal / rollout.groups_per_step),
        rate=learner.mean_rate(),
    )


def main(arguments: list[str]) -> int:
    """Print a table; with --json also one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="launch.py bench curriculum", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON object on the last line")
    parser.add_argument("--seeds", default=SEEDS, help=f"of tasks and policies ({SEEDS})")
    parser.add_argument("--groups", type=int, default=20_000, help="most that are played (20000)")
    parser.add_argument("settings", nargs="*", help="recipes and overrides: rollout.explore=.2")
    options = parser.parse_args(arguments)
    words = options.seeds.split(",")
    if not all(word.isdecimal() for word in words):
        raise ConfigError(f"--seeds {options.seeds}: name numbers, such as {SEEDS}")
    if options.groups < 1:
        raise ConfigError(f"--groups {options.groups}: play 1 at least")
    rollout = load(options.settings or ["local.toml"]).rollout
    courses = {}
    for draw in DRAWS:
        sys.stderr.write(f"{draw}\n")
        drawn = msgspec.structs.replace(rollout, draw=draw)
        courses[draw] = [play(drawn, seed=int(word), max_groups=options.groups) for word in words]
    _print(courses)
    if options.json:
        result = {draw: [asdict(course) for course in each] for draw, each in courses.items()}
        sys.stdout.write(json.dumps({"benchmark": "curriculum", "draws": result}) + "\n")
    return 0


def _print(courses: dict[str, list[Course]]) -> None:
    shown = Table(box=None, pad_edge=False)
    shown.add_column("rollout.draw")
    for head in ("groups with signal", f"groups until {GOAL:g}", "steps", "mean pass rate"):
        shown.add_column(head, justify="right")
    for draw, each in courses.items():
        shown.add_row(
            draw,
            f"{statistics.fmean(one.signal_frac for one in each):.0%}",
            f"{statistics.fmean(one.groups for one in each):.0f}",
            f"{statistics.fmean(one.steps for one in each):.0f}",
            f"{statistics.fmean(one.rate for one in each):.2f}",
        )
    Console(file=sys.stdout, width=100).print(shown)
