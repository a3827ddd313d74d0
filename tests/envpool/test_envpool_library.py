"""Pools that nobody trusts: what the coordinator knows of them, without running their code."""

import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import pytest

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import library, sandbox
from envpool.library import LibrarySource
from envpool.task import Split, config_split

LIMITS = EnvPoolSection(step_timeout_s=5.0)
BASICS = PoolSection(source="envpool.envs:basics", train=["sum_list"])

pytestmark = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))

ENV = """
import os, time
import msgspec
from envpool.env import ToolEnv, tool

class Number(msgspec.Struct):
    number: int

class Odd(ToolEnv):
    Config = Number
    @classmethod
    def sample(cls, rng, level):
        {sample}
    def setup(self, config):
        {setup}
    def statement(self):
        return {statement}
    def reference(self):
        return 1
    @tool
    def look(self) -> int:
        '''Look.'''
        return 1

envs = {{"odd": Odd}}
"""
GOOD = {
    "sample": "return {'number': rng.randrange(10**6)}",
    "setup": "pass",
    "statement": "'Answer 1.'",
}


def section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **parts: str) -> PoolSection:
    """A pool of one environment, as a module that only a zygote imports."""
    text = textwrap.dedent(ENV).format(**GOOD | parts)
    (tmp_path / "nobodys.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return PoolSection(source="nobodys:envs")


def studied(
    name: str, section: PoolSection, used: dict[str, list[int]], limits: EnvPoolSection = LIMITS
) -> LibrarySource:
    """One pool, with configurations of what is used of it."""
    return library.study({name: section}, limits, lambda _: {name: used})[name]


@pytest.fixture(scope="module")
def source() -> LibrarySource:
    return studied("basics", BASICS, {"sum_list": [0, 1], "find_max": [0]})


def test_it_knows_what_the_code_serves(source: LibrarySource) -> None:
    assert {"sum_list", "find_max", "price_total"} <= set(source.envs)
    assert source.train == ("sum_list",)
    assert (source.key.name, source.key.version) == ("basics", source.version)


@pytest.mark.parametrize("split", list(Split))
def test_draws_are_of_their_split_and_level(source: LibrarySource, split: Split) -> None:
    rng = Random(0)
    short = [source.draw("sum_list", rng, split) for _ in range(50)]
    long = [source.draw("sum_list", rng, split, level=1) for _ in range(50)]
    for config in (*short, *long):
        assert config_split("sum_list", config) is split
    assert max(len(config["numbers"]) for config in short) <= 5
    assert min(len(config["numbers"]) for config in long) >= 5
    assert len({str(config) for config in short}) > 20


def test_it_counts_what_there_is_to_draw_from(source: LibrarySource) -> None:
    for split in Split:
        rng = Random(0)
        drawn = {str(source.draw("find_max", rng, split)) for _ in range(20_000)}
        assert source.count("find_max", split) == len(drawn)
    assert source.count("find_max", Split.TRAIN, level=1) == 0


def test_without_a_split_all_configurations_are_drawn_alike(source: LibrarySource) -> None:
    rng = Random(0)
    drawn = [source.draw("find_max", rng, None) for _ in range(40_000)]
    total = source.count("find_max", None)
    assert len({str(config) for config in drawn}) == total
    assert total == sum(source.count("find_max", split) for split in Split)
    kept = sum(config_split("find_max", config) is Split.EVAL for config in drawn)
    expected = source.count("find_max", Split.EVAL) / total
    assert kept / len(drawn) == pytest.approx(expected, abs=0.01)


def test_the_words_for_what_was_never_drawn_name_the_split_if_there_is_one(
    source: LibrarySource,
) -> None:
    with pytest.raises(ConfigError, match="gave no eval configuration of level 1 in"):
        source.draw("find_max", Random(0), Split.EVAL, level=1)
    with pytest.raises(ConfigError, match="gave no configuration of level 1 in"):
        source.draw("find_max", Random(0), None, level=1)


def test_draws_follow_the_generator(source: LibrarySource) -> None:
    again = studied("basics", BASICS, {"sum_list": [0]})
    one = [source.draw("sum_list", rng, Split.TRAIN) for rng in [Random(7)] for _ in range(20)]
    other = [again.draw("sum_list", rng, Split.TRAIN) for rng in [Random(7)] for _ in range(20)]
    assert one == other


def test_unknown_ids_are_named(source: LibrarySource) -> None:
    with pytest.raises(ConfigError, match="did you mean sum_list"):
        source.draw("sum_lists", Random(0), Split.TRAIN)
    with pytest.raises(ConfigError, match=r"pools\.basics\.train: no env 'x'"):
        studied("basics", PoolSection(source=BASICS.source, train=["x"]), {})


def test_its_code_does_not_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = studied("mine", section(tmp_path, monkeypatch), {"odd": [0]})
    assert "nobodys" not in sys.modules
    assert found.draw("odd", Random(0), Split.TRAIN).keys() == {"number"}


@pytest.mark.parametrize(
    ("part", "code", "words"),
    [
        ("sample", "raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("sample", "return {'number': 3}", "must draw from more configurations"),
        ("sample", "return 3", "does not play"),
        # The zygote tries them first, to be warm.
        ("sample", "os._exit(0)", "its process died"),
        ("sample", "time.sleep(60)", r"took over 3\.0 s"),
        ("setup", "raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("statement", "''", r"statement\(\) .*nobodys.py:\d+\) gave an empty text"),
    ],
)
def test_what_does_not_play_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, code: str, words: str
) -> None:
    pool = section(tmp_path, monkeypatch, **{part: code})
    with pytest.raises(ConfigError, match=words):
        use(pool)


def use(pool: PoolSection) -> None:
    """What a run does before it starts."""
    limits = EnvPoolSection(step_timeout_s=3.0, start_timeout_s=3.0)
    found = studied("mine", pool, {"odd": [0]}, limits)
    for split in Split:
        found.draw("odd", Random(0), split)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_run_trains_on_a_pool_that_nobody_trusts(tmp_path: Path) -> None:
    """Its tasks, its sessions and its rewards, through real processes."""
    root = Path(__file__).parents[2]
    settings = [
        f"run.dir={tmp_path / 'run'}",
        "pools.tiny.trusted=false",
        "pools.tiny.sessions_per_process=1",
        "learner.steps=3",
        "logging.wandb=off",
        *(f"eval.sets.{name}.count=4" for name in ("fresh", "harder", "held_out", "unseen")),
    ]
    command = [sys.executable, str(root / "launch.py"), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "landlock, seccomp" in done.stdout
    assert "ledger balances: 12 trained" in done.stdout
