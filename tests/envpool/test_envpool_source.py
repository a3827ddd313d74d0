"""Where environments come from, how they are hashed, and how tasks are drawn from them."""

import importlib
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

import envpool
from configs.load import ConfigError
from configs.schema import PoolSection
from envpool.envs import SumList, basics
from envpool.source import PoolSource, check_package
from envpool.task import Split, config_split

SECTION = PoolSection(source="envpool.envs:basics", train=["sum_list", "find_max"], trusted=True)


def test_source_knows_its_envs_and_which_to_train_on() -> None:
    source = PoolSource.load("basics", SECTION)
    assert source.envs == basics
    assert source.train == ("sum_list", "find_max")
    assert PoolSource.load("basics", PoolSection(source=SECTION.source)).train == tuple(basics)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (PoolSection(source="envpool.envs"), "is not module:attribute"),
        (PoolSection(source="envpool.env:basics"), "'envpool.env' has no|has no 'basics'"),
        (PoolSection(source="envpool.envs:basic"), "did you mean basics"),
        (PoolSection(source="envpol.envs:basics"), "No module named 'envpol'"),
        (PoolSection(source="envpool.envs:SumList"), "must be a mapping"),
        (PoolSection(source=SECTION.source, train=["sum_lst"]), "did you mean sum_list"),
    ],
)
def test_unknown_name_is_refused_with_near_misses(section: PoolSection, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PoolSource.load("a", section)


@pytest.mark.parametrize("split", list(Split))
@pytest.mark.parametrize("env_id", list(basics))
def test_drawn_configurations_are_of_the_split_asked_for(env_id: str, split: Split) -> None:
    source = PoolSource.load("basics", SECTION)
    rng = Random(0)
    for _ in range(20):
        task = source.task(env_id, source.draw(env_id, rng, split, level=1), seed=1)
        assert task.split is config_split(env_id, task.config) is split
        assert (task.pool, task.pool_version) == ("basics", source.version)


def test_without_a_split_any_configuration_is_drawn() -> None:
    source = PoolSource.load("basics", SECTION)
    rng = Random(0)
    drawn = [source.draw("sum_list", rng, None) for _ in range(400)]
    sides = Counter(config_split("sum_list", config) for config in drawn)
    # One in eight.
    assert 30 <= sides[Split.EVAL] <= 75 and sides.total() == 400
    assert source.count("sum_list", None) is None


def test_without_a_split_every_configuration_that_is_listed_counts() -> None:
    listed = [{"numbers": [number]} for number in [*range(24), 3, 5]]
    source = PoolSource(
        name="p", version="", envs={"a": SumList}, train=("a",), trusted=True,
        tasks={("a", 0): listed},
    )  # fmt: skip
    each = [source.count("a", split) for split in Split]
    assert all(each) and source.count("a", None) == 24 == sum(number or 0 for number in each)
    rng = Random(0)
    assert {source.draw("a", rng, None)["numbers"][0] for _ in range(500)} == {*range(24)}


def test_draws_are_decided_by_the_generator_given() -> None:
    source = PoolSource.load("basics", SECTION)
    one, other = Random(5), Random(5)
    for env_id in basics:
        config = source.draw(env_id, one, Split.TRAIN)
        assert config == source.draw(env_id, other, Split.TRAIN)


def test_generator_with_too_few_configurations_is_named() -> None:
    class Constant(SumList):
        @classmethod
        def sample(cls, rng: Random, level: int) -> dict[str, Any]:
            return {"numbers": [1]}

    missing = Split.EVAL if config_split("a", {"numbers": [1]}) is Split.TRAIN else Split.TRAIN
    source = PoolSource(name="p", version="", envs={"a": Constant}, train=("a",), trusted=True)
    with pytest.raises(ConfigError, match="must draw from more configurations"):
        source.draw("a", Random(0), missing)


def test_a_generator_that_fails_now_and_then_is_named_with_its_line() -> None:
    class Moody(SumList):
        @classmethod
        def sample(cls, rng: Random, level: int) -> dict[str, Any]:
            return {"numbers": [1 // rng.randrange(5)]}

    source = PoolSource(name="p", version="", envs={"a": Moody}, train=("a",), trusted=True)
    with pytest.raises(ConfigError, match=r"Moody.sample\(\) raised ZeroDivisionError.*py:\d+: it"):
        _ = [source.draw("a", Random(seed), Split.TRAIN) for seed in range(100)]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def test_version_follows_the_text_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    single = "from envpool.envs.sum_list import SumList\nclass A(SumList): ...\npool = {'a': A}\n"
    inner = single.replace("import SumList", "import SumList\nfrom plug_package import draw")

    def version(module: str) -> str:
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.startswith("plug_")]:
            del sys.modules[name]
        return PoolSource.load("p", PoolSection(source=f"{module}:pool")).version

    write(tmp_path / "plug_single.py", single)
    write(tmp_path / "plug_package" / "__init__.py", "")
    write(tmp_path / "plug_package" / "draw.py", "X = 1\n")
    write(tmp_path / "plug_package" / "inner.py", inner)
    before = [version("plug_single"), version("plug_package.inner")]
    assert before == [version("plug_single"), version("plug_package.inner")]
    write(tmp_path / "plug_package" / "draw.py", "X = 20\n")
    write(tmp_path / "plug_single.py", single + "X = 20\n")
    after = [version("plug_single"), version("plug_package.inner")]
    assert len({*before, *after}) == 4


def test_another_package_of_the_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envpool, "__file__", "/usr/lib/python3/envpool/__init__.py")
    with pytest.raises(ImportError, match="uninstall the other package"):
        check_package()


def test_import_is_light() -> None:
    code = (
        "import sys, envpool.source, envpool.pool, envpool.envs; "
        "print([m for m in ('torch', 'ray', 'transformers', 'vllm') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert output.stdout.split() == [b"[]"]
