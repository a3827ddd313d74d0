"""Varied tasks: what they show, what they refuse, and that they are judged as the plain ones are."""

import asyncio
import os
import signal
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool.conformance import check_envs
from envpool.env import ToolEnv, ToolInputError, call_text, tool
from envpool.envs import basics
from envpool.envs.numbers import Numbers
from envpool.envs.sum_list import SumList
from envpool.pool import EnvFault, EnvPool
from envpool.source import PoolSource
from envpool.task import VARIATION, Config, Split, Task, config_split
from envpool.varied import Varied, playable
from synth.vary import KINDS
from tests.envpool.varying import drawn, play, started

NUMBERS: Config = {"numbers": [3, 1, 4]}
READ = {"get": {"name": "read_item", "description": "Read one of them."}}
BASICS = PoolSection(source="envpool.envs:basics", trusted=True)
LIMITS = EnvPoolSection(step_timeout_s=5.0, start_timeout_s=20.0, max_sessions=64)


def varied(**variation: Any) -> Varied:
    env = started("sum_list", {**NUMBERS, VARIATION: variation})
    assert isinstance(env, Varied)
    return env


def ask(env: ToolEnv | Varied, name: str, /, **arguments: Any) -> str:
    return env.step(call_text(name, arguments))[0]


def names(env: ToolEnv | Varied) -> list[str]:
    return [schema["function"]["name"] for schema in env.tools()]


def test_a_configuration_without_the_key_is_played_on_the_environment_itself() -> None:
    env = basics["sum_list"]()
    assert playable(env, NUMBERS) is env


def test_an_environment_never_sees_the_key() -> None:
    class Anything(msgspec.Struct):
        numbers: list[int]
        left: Any = msgspec.field(name="variation", default=None)

    class Lenient(SumList):
        """One whose Config does not mind the key."""

        Config = Anything

        def setup(self, config: Any) -> None:
            self.seen = config
            super().setup(config)

    config = {**NUMBERS, VARIATION: {"budget": 3}}
    env = Lenient()
    playable(env, config).reset(options=config)
    assert env.seen == Anything(numbers=NUMBERS["numbers"], left=None)
    with pytest.raises(ConfigError, match="playable"):
        env.reset(options=config)


def test_a_variant_is_on_the_side_of_the_plain_task_and_another_task() -> None:
    sides = []
    for number in range(200):
        plain = {"numbers": [number]}
        variant = {**plain, VARIATION: {"budget": number + 1}}
        assert config_split("sum_list", variant) is config_split("sum_list", plain)
        sides.append(config_split("sum_list", variant))
        pair = [
            Task(pool="basics", pool_version="1", env="sum_list", config=config, seed=0)
            for config in (plain, variant)
        ]
        assert pair[0].id != pair[1].id
    assert set(sides) == {Split.TRAIN, Split.EVAL}


def test_a_renamed_tool_is_shown_and_called_by_its_new_name_only() -> None:
    env = varied(rename=READ)
    assert names(env) == ["length", "read_item", "done"]
    assert env.tools()[1]["function"]["description"] == "Read one of them."
    assert ask(env, "read_item", index=2) == "4"
    assert ask(env, "get", index=2) == "Error: tools are length, read_item, done"
    assert ask(env, "read_item", index="2") == "Error: read_item takes (index: int)"
    assert ask(env, "read_item", index=3) == "Error: index out of range"


def test_two_tools_may_exchange_their_names() -> None:
    env = varied(rename={"get": {"name": "length"}, "length": {"name": "get"}})
    assert [ask(env, "length", index=0), ask(env, "get")] == ["3", "3"]
    assert names(env) == ["get", "length", "done"]


class Pairs(ToolEnv):
    """Add two numbers with `add_up(first, second)`."""

    Config = Numbers

    def setup(self, config: Numbers) -> None:
        self._numbers = config.numbers
        self._num_said = 0

    def statement(self) -> str:
        return "Call add_up twice, say(), or `say`, and say what you see."

    def reference(self) -> int:
        return sum(self._numbers)

    @tool
    def add_up(self, first: int, third: int, second: int = 0) -> int:
        """The first number and the second, as `first` says; see `say`.

        Args:
            first: Position of one, below `second`.
            third: Nothing.
            second: Position of the other.
        """
        return self._numbers[first] - self._numbers[second]

    @tool
    def say(self) -> str:
        """Say something."""
        self._num_said += 1
        if self._num_said > 1:
            raise ToolInputError("call add_up")
        return "call add_up"


def test_parameters_get_other_names_and_another_order_and_texts_follow() -> None:
    config: Config = {
        "numbers": [5, 9],
        VARIATION: {
            "rename": {"add_up": {"name": "join"}, "say": {"name": "talk"}},
            "permute": {
                "add_up": {"names": {"first": "one"}, "order": ["second", "third", "first"]}
            },
        },
    }
    env = playable(Pairs(), config)
    assert (
        env.reset(options=config)[0] == "Call join twice, talk(), or `talk`, and say what you see."
    )
    function = env.tools()[0]["function"]
    parameters = function["parameters"]
    assert function["description"] == "The first number and the second, as `one` says; see `talk`."
    assert list(parameters["properties"]) == ["second", "third", "one"]
    assert parameters["properties"]["one"] == {
        "type": "integer",
        "description": "Position of one, below `second`.",
    }
    assert parameters["required"] == ["third", "one"]
    takes = "Error: join takes (second: int, third: int, one: int)"
    assert ask(env, "join", one=0, second=1, third=0) == "-4"
    assert ask(env, "join", one=1, third=0) == "4"
    assert ask(env, "join", first=1, third=0) == takes
    # An observation that an oracle reads is the environment's, word for word.
    assert ask(env, "talk") == "call add_up"
    # A message for whoever called wrongly is not.
    assert ask(env, "talk") == "Error: call join"
    # The environment's own schema is as it was.
    assert next(iter(Pairs.tools()[0]["function"]["parameters"]["properties"])) == "first"


def test_a_distractor_is_a_tool_like_others_and_touches_nothing() -> None:
    weather = {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"city": {"type": "string", "description": "Where."}},
        "replies": ["rain", "sun"],
        "at": 1,
    }
    env = varied(distract=[weather])
    assert names(env) == ["length", "weather", "get", "done"]
    assert env.tools()[1]["function"]["parameters"]["required"] == ["city"]
    assert [ask(env, "weather", city="Ulm") for _ in range(3)] == ["rain", "sun", "rain"]
    assert env.step(call_text("weather", {}))[4] == {"is_bad_call": True}
    assert ask(env, "weather", town="Ulm") == "Error: weather takes (city: str)"
    assert env.step(call_text("done", {"answer": 8}))[1] == 1.0


def test_a_failed_call_changes_nothing_and_the_bound_holds() -> None:
    config: Config = {"numbers": [3, 1, 2], VARIATION: {"fail": {"rate": 1.0, "in_a_row": 2}}}
    env = started("bubble_sort", config)
    seen = [ask(env, "order", index=0) for _ in range(9)]
    busy = "Error: busy, try again"
    assert seen == [busy, busy, "swapped", busy, busy, "kept", busy, busy, "kept"]
    assert ask(env, "order", index=1) == busy
    # A call that is none is told so at once, and is no chance to fail.
    assert ask(env, "order", index="x") == "Error: order takes (index: int)"
    assert ask(env, "order", index=1) == busy
    assert ask(env, "order", index=1) == "swapped"
    assert env.step(call_text("done", {"answer": 2}))[1:3] == (1.0, True)


def test_failures_come_at_their_rate_for_the_tools_named() -> None:
    env = varied(fail={"rate": 0.25, "in_a_row": 50, "tools": ["get"], "message": "Error: later"})
    seen = [ask(env, "get", index=0) for _ in range(4000)]
    assert 0.22 < seen.count("Error: later") / len(seen) < 0.28
    assert {ask(env, "length") for _ in range(100)} == {"3"}


def test_noise_is_around_the_observation_at_its_rate_and_never_around_errors() -> None:
    env = varied(noise={"templates": ["[log] {}", "Result: {}."], "rate": 0.5})
    seen = [ask(env, "get", index=1) for _ in range(1000)]
    assert set(seen) == {"1", "[log] 1", "Result: 1."}
    assert 430 < seen.count("1") < 570
    assert {ask(env, "get", index=9) for _ in range(50)} == {"Error: index out of range"}
    other = varied(noise={"templates": ["[log] {}", "Result: {}."], "rate": 0.5, "seed": 1})
    assert seen != [ask(other, "get", index=1) for _ in range(1000)]


def test_noise_that_looks_like_a_format_is_only_text() -> None:
    env = varied(noise={"templates": ["%s {0} {} \\1"]})
    assert ask(env, "length") == "%s {0} 3 \\1"


def test_long_observations_come_in_pages() -> None:
    env = varied(noise={"templates": ["abcdefg{}"]}, paginate={"size": 3, "tool": "more"})
    assert names(env) == ["length", "get", "more", "done"]
    assert ask(env, "more", page=1) == "Error: there is no page 1"
    assert ask(env, "length") == "abc\n[page 1 of 3]"
    pages = [ask(env, "more", page=page) for page in (2, 3, 1)]
    assert pages == ["def\n[page 2 of 3]", "g3\n[page 3 of 3]", "abc\n[page 1 of 3]"]
    for page in (0, 4):
        assert ask(env, "more", page=page) == f"Error: there is no page {page}"
    whole = varied(noise={"templates": ["abcdefg{}"]}, paginate={"size": 8})
    assert ask(whole, "length") == "abcdefg3"


def test_a_budget_leaves_only_the_answer() -> None:
    env = varied(budget=3)
    config = {**NUMBERS, VARIATION: {"budget": 3}}
    assert env.reset(options=config)[0] == "Sum all numbers.\nAt most 3 calls before done."
    # Whatever is called counts, wrong calls too.
    assert ask(env, "length") == "3"
    assert ask(env, "nothing").startswith("Error: tools are")
    assert env.step("no call")[0].startswith("Error: a call is JSON")
    refused = env.step(call_text("get", {"index": 0}))
    assert refused == (
        "Error: no calls are left but done",
        0.0,
        False,
        False,
        {"is_bad_call": False},
    )
    assert env.step("no call")[0] == refused[0]
    # An answer that is none is no end, and another may be given.
    assert env.step(call_text("done", {"answer": "many"}))[2] is False
    assert env.step(call_text("done", {"answer": 8}))[1:3] == (1.0, True)
    after = env.step(call_text("get", {"index": 0}))
    assert after[:3] == ("Error: the episode is over", 0.0, True)


def test_an_instance_may_be_reset_again_and_begins_anew() -> None:
    for seed in range(20):
        config = drawn("bubble_sort", seed, list(KINDS))
        env = playable(basics["bubble_sort"](), config)
        plays = []
        for _ in range(2):
            env.reset(seed=3, options=config)
            plays.append(play(env, env.oracle()))
        assert plays[0] == plays[1]


MALFORMED = [
    (7, r"Expected `object`, got `int`"),
    ({"colour": 1}, r"unknown field `colour`.*there are rename, permute"),
    (
        {"rename": {"gte": {"name": "x"}}},
        "rename has 'gte', which is no tool of it: there are length",
    ),
    ({"rename": {"done": {"name": "x"}}}, "rename has 'done', which stays as it is"),
    ({"rename": {"get": {"name": "length"}}}, "two tools would be called 'length': rename one"),
    ({"rename": {"get": {"name": "done"}}}, "two tools would be called 'done'"),
    ({"rename": {"get": {"name": "a b"}}}, r"matching regex.*\$\.rename\[\.\.\.\]\.name"),
    ({"permute": {"get": {"names": {"key": "x"}}}}, "permute.get.names has 'key'.*there are index"),
    ({"permute": {"get": {"order": ["x"]}}}, r"permute.get.order is \['x'\].*\(index\)"),
    ({"permute": {"done": {"order": []}}}, "permute has 'done'"),
    (
        {"distract": [{"name": "get", "description": "x", "replies": ["y"]}]},
        "two tools would be called 'get'",
    ),
    ({"distract": [{"name": "x", "description": "x", "replies": []}]}, "replies"),
    (
        {
            "distract": [
                {
                    "name": "x",
                    "description": "x",
                    "replies": ["y"],
                    "parameters": {"__slots__": {"type": "string", "description": "x"}},
                }
            ]
        },
        "matching regex",
    ),
    ({"fail": {}}, r"missing required field `rate` - at `\$\.fail`"),
    ({"fail": {"rate": 1.5}}, r"<= 1.0 - at `\$\.fail\.rate`"),
    ({"fail": {"rate": 0.5, "in_a_row": 0}}, r">= 1 - at `\$\.fail\.in_a_row`"),
    ({"fail": {"rate": 0.5, "tools": ["done"]}}, "fail.tools has 'done'"),
    ({"noise": {"templates": ["no place"]}}, r"write \{\} in it once"),
    ({"noise": {"templates": ["{}{} text"]}}, r"write \{\} in it once"),
    ({"noise": {"templates": [">{}"]}}, "at least 4 characters"),
    ({"paginate": {"size": 0}}, r"\$\.paginate\.size"),
    ({"paginate": {"size": 9, "tool": "get"}}, "two tools would be called 'get'"),
    ({"budget": 0}, r">= 1 - at `\$\.budget`"),
]


@pytest.mark.parametrize(("variation", "message"), MALFORMED)
def test_a_malformed_variation_is_refused(variation: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        started("sum_list", {**NUMBERS, VARIATION: variation})
    assert str(caught.value).startswith("variation of SumList: ")


def test_a_distractors_parameter_may_have_any_name() -> None:
    names = ["class", "self", "mro", "page"]
    parameters = {name: {"type": "string", "description": "x"} for name in names}
    distractor = {"name": "x", "description": "x", "parameters": parameters, "replies": ["y"]}
    assert ask(varied(distract=[distractor]), "x", **dict.fromkeys(names, "")) == "y"


def test_a_config_with_a_field_of_the_reserved_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken_source.py").write_text(
        "import msgspec\n"
        "from envpool.envs.sum_list import SumList\n"
        "class Taken(msgspec.Struct):\n    variation: int = 0\n"
        "class Own(SumList):\n    Config = Taken\n"
        "envs = {'own': Own}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    section = PoolSection(source="taken_source:envs", trusted=True)
    with pytest.raises(ConfigError, match="field 'variation', which is reserved"):
        PoolSource.load("mine", section)


def test_environments_whose_configurations_are_varied_are_tried_before_a_run() -> None:
    class Own(SumList):
        """Draws a varied task."""

        variation: Any = None

        @classmethod
        def sample(cls, rng: Random, level: int) -> dict[str, Any]:
            return {**super().sample(rng, level), VARIATION: cls.variation}

    source = PoolSource(name="mine", version="1", envs={"own": Own}, train=("own",), trusted=True)
    Own.variation = {"rename": READ, "budget": 9}
    check_envs(source, {"own": [0]})
    Own.variation = {"rename": {"gte": {"name": "x"}}}
    with pytest.raises(ConfigError, match="rename has 'gte', which is no tool"):
        check_envs(source, {"own": [0]})


async def test_a_session_plays_a_variant_and_goes_on_as_it_was_when_its_worker_dies() -> None:
    async with await EnvPool.start({"basics": BASICS}, limits=LIMITS) as pool:
        version = pool.versions()["basics"]
        for number, env_id in enumerate(basics):
            config = await asyncio.to_thread(drawn, env_id, number, list(KINDS))
            env = await asyncio.to_thread(started, env_id, config, seed=number)
            told = await asyncio.to_thread(play, env, env.oracle())
            task = Task(pool="basics", pool_version=version, env=env_id, config=config, seed=number)
            async with await pool.open(task) as session:
                assert session.tools == env.tools()
                for index, (action, observation, reward, is_over) in enumerate(told):
                    if index in (1, len(told) // 2, len(told) - 1):
                        os.kill(session.pid, signal.SIGKILL)
                    result = await session.step(action)
                    assert result.observation == observation
                    assert (result.reward, result.terminated) == (reward, is_over)
            assert told[-1][2] == 1.0


async def test_a_malformed_variation_faults_the_open_and_says_why() -> None:
    async with await EnvPool.start({"basics": BASICS}, limits=LIMITS) as pool:
        config = {**NUMBERS, VARIATION: {"rename": {"gte": {"name": "x"}}}}
        version = pool.versions()["basics"]
        task = Task(pool="basics", pool_version=version, env="sum_list", config=config, seed=0)
        with pytest.raises(EnvFault, match="rename has 'gte', which is no tool of it"):
            await pool.open(task)
