"""What README.md shows can be done, and what it lists is all there is."""

import asyncio
import re
from pathlib import Path
from random import Random

import pytest

from configs import describe
from configs.load import load
from configs.schema import EnvPoolSection, RunConfig
from envpool.env import call_text
from envpool.pool import EnvPool
from envpool.source import PoolSource
from envpool.task import Split

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(language: str) -> str:
    """The one code block of a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return found


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's own environment and recipe, as files."""
    (tmp_path / "my_pool.py").write_text(block("python"))
    path = tmp_path / "mine.toml"
    path.write_text(block("toml"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return path


def read(recipe: Path) -> tuple[RunConfig, PoolSource]:
    """The config, and its only pool."""
    config = load([str(recipe)])
    ((name, section),) = config.pools.items()
    return config, PoolSource.load(name, section)


async def test_the_environment_plays(recipe: Path) -> None:
    config, source = await asyncio.to_thread(read, recipe)
    (env_id,) = source.envs
    hidden = source.draw(env_id, Random(0), Split.TRAIN)
    task = source.task(env_id, hidden, seed=0)
    pool = await EnvPool.start(config.pools, limits=EnvPoolSection())
    try:
        session = await pool.open(task)
        length = int((await session.step(call_text("length", {}))).observation)
        assert length == len(hidden["numbers"])
        wrong = await session.step(call_text("get", {"index": length}))
        assert wrong.is_bad_call
        last = await session.step(call_text("get", {"index": length - 1}))
        assert last.reward == 0.0
        end = await session.step(call_text("done", {"answer": int(last.observation)}))
        assert end.reward == 1.0
    finally:
        await pool.close()


def test_the_environment_is_as_short_as_it_says() -> None:
    lines = [line for line in block("python").splitlines() if line.strip()]
    assert len(lines) <= 30


def test_every_setting_is_in_the_reference() -> None:
    assert describe.reference() in README, "run `python -m configs.describe` and paste it"
