"""The mixture: shares of pools and environments, the training split, signal, requeued tasks."""

from collections import Counter

import pytest

from configs.schema import PoolSection
from envpool.source import PoolSource
from envpool.task import Split
from rollout.curriculum import Curriculum, Share

SOURCE = PoolSource.load("basics", PoolSection(source="envpool.envs:basics", trusted=True))
ENVS = ("find_max", "sum_list", "walk_list")


def make(draw: str = "even", seed: int = 0) -> Curriculum:
    share = Share(source=SOURCE, weight=1.0, envs=ENVS)
    return Curriculum({SOURCE.key: share}, seed=seed, draw=draw)


def counts(curriculum: Curriculum, number: int = 600) -> Counter[str]:
    return Counter(curriculum.next().task.env for _ in range(number))


def test_only_training_configurations_are_drawn() -> None:
    curriculum = make()
    assert all(curriculum.next().task.split is Split.TRAIN for _ in range(300))


def test_the_nth_task_depends_on_seed_and_cursor_alone() -> None:
    one, other = make(), make()
    for _ in range(5):
        one.next()
    other.cursor = 5
    assert one.next().task == other.next().task
    assert make(seed=1).next().task != make(seed=0).next().task


def test_environments_are_drawn_evenly() -> None:
    found = counts(make())
    assert all(150 < found[env] < 250 for env in ENVS)


@pytest.mark.parametrize(("draw", "is_favoured"), [("signal", True), ("even", False)])
def test_environments_with_signal_are_drawn_more_often(draw: str, is_favoured: bool) -> None:
    curriculum = make(draw)
    tasks = {task.env: task for task in (curriculum.next().task for _ in range(60))}
    for _ in range(100):
        curriculum.note(tasks["sum_list"], has_signal=True)
        curriculum.note(tasks["find_max"], has_signal=False)
    found = counts(curriculum)
    assert (found["sum_list"] > 5 * found["find_max"]) is is_favoured
    assert found["find_max"] > 0  # a policy may forget: nothing is given up


def test_requeued_tasks_come_first() -> None:
    curriculum = make()
    first = curriculum.next()
    curriculum.requeue(first)
    assert curriculum.next() is first


def test_requeued_tasks_keep_their_order() -> None:
    curriculum = make()
    first, second = curriculum.next(), curriculum.next()
    curriculum.requeue(first)
    curriculum.requeue(second)
    assert [curriculum.next(), curriculum.next()] == [first, second]


def test_pools_are_drawn_by_weight() -> None:
    other = PoolSource.load(
        "other", PoolSection(source="envpool.envs:basics", train=["sum_list"], trusted=True)
    )
    shares = {
        SOURCE.key: Share(source=SOURCE, weight=3.0, envs=ENVS),
        other.key: Share(source=other, weight=1.0, envs=other.train),
    }
    curriculum = Curriculum(shares, seed=0)
    drawn = Counter(curriculum.next().task.pool for _ in range(400))
    assert 250 < drawn["basics"] < 350 and drawn.total() == 400
