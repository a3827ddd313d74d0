"""`ToolEnv`: derived schemas, wrong calls, the latch, and how answers are graded."""

import json
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pytest
from gymnasium.vector import SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st

from configs.load import ConfigError
from envpool.env import GraderError, ToolEnv, ToolInputError, at, call_text, tool


class Point(msgspec.Struct):
    x: int


class Sample(ToolEnv):
    """An environment with every kind of argument."""

    Answer = list[float]

    class Config(msgspec.Struct, forbid_unknown_fields=True):
        numbers: list[int]

    def setup(self, config: Config) -> None:
        self.numbers = config.numbers
        self.calls: list[Any] = []

    def statement(self) -> str:
        return "Sort."

    def reference(self) -> list[float]:
        return [float(number) for number in sorted(self.numbers)]

    @tool
    def get(self, index: int, scale: float = 1.0) -> float:
        """Read one number,
        scaled.

        Args:
            index: Its position: from 0,
                to the last.
            scale (float): A factor.

        Returns:
            The product.
        """
        return at(self.numbers, index) * scale

    @tool
    def mark(self, point: Point, colors: list[Literal["red", "blue"]]) -> dict[str, Any]:
        """Mark a point.

        Args:
            point: Where.
            colors: With what.
        """
        self.calls.append(point)
        return {"x": point.x, "colors": colors, "ok": True, "why": None}

    @tool
    def broken(self) -> int:
        """Raise."""
        return self.numbers[99]


def sample() -> Sample:
    env = Sample()
    env.reset(options={"numbers": [3, 1, 2]})
    return env


def observe(env: ToolEnv, name: str, /, **arguments: Any) -> str:
    observation, reward, terminated, truncated, info = env.step(call_text(name, arguments))
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"is_bad_call": False})
    return observation


def test_schema_comes_from_signature_and_docstring() -> None:
    get, mark, broken, done = (schema["function"] for schema in Sample.tools())
    assert all(schema["type"] == "function" for schema in Sample.tools())
    assert get == {
        "name": "get",
        "description": "Read one number, scaled.",
        "parameters": {
            "type": "object",
            "properties": {
                "index": {
                    "type": "integer",
                    "description": "Its position: from 0, to the last.",
                },
                "scale": {"type": "number", "description": "A factor.", "default": 1.0},
            },
            "required": ["index"],
            "additionalProperties": False,
        },
    }
    colors = mark["parameters"]["properties"]["colors"]
    assert colors["items"] == {"enum": ["blue", "red"]}
    assert mark["parameters"]["$defs"]["Point"]["required"] == ["x"]
    assert broken["parameters"]["properties"] == {}
    assert done["parameters"]["properties"]["answer"]["type"] == "array"
    json.dumps(Sample.tools())


def test_tools_return_text_or_json() -> None:
    env = sample()
    assert observe(env, "get", index=1) == "1.0"
    assert observe(env, "get", index=1, scale=7) == "7.0"
    marked = observe(env, "mark", point={"x": 4}, colors=["red"])
    assert json.loads(marked) == {"x": 4, "colors": ["red"], "ok": True, "why": None}
    assert env.calls == [Point(4)]


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ("", "a call is JSON"),
        ("get(1)", "a call is JSON"),
        ('["get"]', "a call is JSON"),
        ('{"name": "get", "parameters": {"index": 1}}', "a call is JSON"),
        ('{"name": "reference"}', "tools are get, mark, broken, done"),
        ('{"name": "get"}', "get takes (index: int, scale: float)"),
        ('{"name": "get", "arguments": {"index": "1"}}', "get takes"),
        ('{"name": "get", "arguments": {"index": true}}', "get takes"),
        ('{"name": "get", "arguments": {"index": 1.5}}', "get takes"),
        ('{"name": "get", "arguments": {"index": null}}', "get takes"),
        ('{"name": "get", "arguments": {"index": 1, "by": 2}}', "get takes"),
        ('{"name": "get", "arguments": {"index": 3}}', "index out of range"),
        ('{"name": "get", "arguments": {"index": -1}}', "index out of range"),
        ('{"name": "mark", "arguments": {"point": {"x": 1}, "colors": ["green"]}}', "mark takes"),
        ('{"name": "done"}', "done takes (answer: list[float])"),
        ('{"name": "done", "arguments": {"answer": 5}}', "done takes"),
        ('{"name": "done", "arguments": {"answer": [1], "sure": true}}', "done takes"),
    ],
)
def test_wrong_call_is_an_observation(action: str, text: str) -> None:
    env = sample()
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation.startswith(f"Error: {text}")
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"is_bad_call": True})
    assert observe(env, "get", index=0) == "3.0"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
CALLS = st.fixed_dictionaries(
    {"name": st.sampled_from(["get", "mark", "done", "__init__", "numbers"])},
    optional={"arguments": st.dictionaries(st.sampled_from(["index", "answer", "point"]), JSON)},
)


@given(st.text() | JSON.map(json.dumps) | CALLS.map(json.dumps))
def test_no_action_raises_and_junk_is_never_rewarded(action: str) -> None:
    env = Sample()
    env.reset(options={"numbers": [12345, 54321]})
    observation, reward, *_ = env.step(action)
    assert reward == 0.0
    assert "54321" not in observation or '"get"' in action


DEEP = '{"name": "get", "arguments": {"index": ' + "[" * 100_000


@pytest.mark.parametrize("action", [DEEP, "1" * 5_000, "\ud800", '{"name":"get"' * 9])
def test_hostile_text_is_a_wrong_call(action: str) -> None:
    assert sample().step(action)[4] == {"is_bad_call": True}


def test_failure_of_the_environment_is_no_observation() -> None:
    with pytest.raises(IndexError):
        sample().step(call_text("broken", {}))


def test_first_answer_ends_the_episode() -> None:
    env = sample()
    right = call_text("done", {"answer": [1, 2, 3]})
    wrong = env.step(call_text("done", {"answer": [0]}))
    assert wrong == ("done", 0.0, True, False, {"is_bad_call": False})
    for action in (right, call_text("get", {"index": 0}), "junk"):
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation == "Error: the episode is over"
        assert (reward, terminated, truncated, info) == (0.0, True, False, {"is_bad_call": True})
    env.reset(options={"numbers": [3, 1, 2]})
    assert env.step(right)[:3] == ("done", 1.0, True)
    assert env.step(right)[1] == 0.0


def test_step_before_reset_is_no_episode() -> None:
    assert Sample().step(call_text("done", {"answer": []}))[1:3] == (0.0, True)


def grade(kind: Any, reference: Any, answer: Any) -> float | str:
    """The reward of `answer`, or the observation where it is not accepted as an answer."""

    class Graded(ToolEnv):
        Config = Point
        Answer = kind

        def setup(self, config: Point) -> None: ...

        def statement(self) -> str:
            return ""

        def reference(self) -> Any:
            return reference

    env = Graded()
    env.reset(options={"x": 0})
    observation, reward, terminated, *_ = env.step(call_text("done", {"answer": answer}))
    return reward if terminated else observation[:6]


@pytest.mark.parametrize(
    ("kind", "reference", "answer", "verdict"),
    [
        (int, 7, 7, 1.0),
        (int, 7, "7", 1.0),
        (int, 7, " 7 ", 1.0),
        (int, 7, "7.0", 1.0),
        (int, 7, 7.0, 1.0),
        (int, 7, 8, 0.0),
        (int, 7, "8", 0.0),
        (int, 1, True, "Error:"),
        (int, 7, "seven", "Error:"),
        (int, 7, 7.5, "Error:"),
        (int, 7, [7], "Error:"),
        (int, 0, None, "Error:"),
        (float, 0.3, 0.1 + 0.2, 1.0),
        (float, 0.3, "0.3", 1.0),
        (float, 3.0, 3, 1.0),
        (float, 0.3, 0.301, 0.0),
        (bool, True, True, 1.0),
        (bool, True, "true", 1.0),
        (bool, True, False, 0.0),
        (str, "7", "7", 1.0),
        (str, "7", " 7\n", 1.0),
        (str, "7", "7.0", 0.0),
        (str, "7", 7, "Error:"),
        (int | bool, 1, True, 0.0),
        (int | bool, True, 1, 0.0),
        (list[int], [1, 2], [1, 2], 1.0),
        (list[int], [1, 2], "[1, 2]", 1.0),
        (list[int], [1, 2], ["1", 2.0], 1.0),
        (list[int], [1, 2], [2, 1], 0.0),
        (list[int], [1, 2], [1, 2, 3], 0.0),
        (dict[str, float], {"a": 0.5}, {"a": 0.5}, 1.0),
        (dict[str, float], {"a": 0.5}, {"b": 0.5}, 0.0),
        (int | None, None, None, 1.0),
        (int | None, 3, None, 0.0),
    ],
)
def test_right_answers_win_in_any_form(
    kind: Any, reference: Any, answer: Any, verdict: float | str
) -> None:
    assert grade(kind, reference, answer) == verdict


def test_checker_decides_where_it_is_given() -> None:
    class AnyOrder(Sample):
        def check(self, answer: list[float]) -> bool:
            return sorted(answer) == self.reference()

    env = AnyOrder()
    env.reset(options={"numbers": [3, 1, 2]})
    assert env.step(call_text("done", {"answer": [2, 1, 3]}))[1] == 1.0


def test_failure_of_the_checker_is_told_apart() -> None:
    class Broken(Sample):
        def check(self, answer: list[float]) -> bool:
            raise ToolInputError("not even this is the policy's fault")

    env = Broken()
    env.reset(options={"numbers": []})
    with pytest.raises(GraderError):
        env.step(call_text("done", {"answer": []}))


@pytest.mark.parametrize("options", [None, {}, {"numbers": "x"}, {"numbers": [], "more": 1}])
def test_wrong_configuration_is_refused(options: dict[str, Any] | None) -> None:
    with pytest.raises(ConfigError, match="configuration of Sample"):
        Sample().reset(options=options)


def no_docstring() -> None:
    class Wrong(ToolEnv):
        @tool
        def get(self, index: int) -> int:
            return index


def undescribed_argument() -> None:
    class Wrong(ToolEnv):
        @tool
        def get(self, index: int) -> int:
            """Read."""
            return index


def argument_that_is_not_there() -> None:
    class Wrong(ToolEnv):
        @tool
        def get(self) -> int:
            """Read.

            Args:
                index: Which.
            """
            return 0


def variable_arguments() -> None:
    class Wrong(ToolEnv):
        @tool
        def get(self, *index: int) -> int:
            """Read.

            Args:
                *index: Which.
            """
            return index[0]


def tool_of_a_taken_name() -> None:
    class Wrong(ToolEnv):
        @tool
        def check(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Check."""
            return True


def second_done() -> None:
    class Wrong(ToolEnv):
        @tool
        def done(self, answer: int) -> str:
            """Answer.

            Args:
                answer: Which.
            """
            return ""


@pytest.mark.parametrize(
    ("define", "text"),
    [
        (no_docstring, "tool Wrong.get: no docstring: describe"),
        (undescribed_argument, "tool Wrong.get: argument index has no line .* add `index: "),
        (argument_that_is_not_there, "tool Wrong.get: Args: describes index, and it takes none"),
        (variable_arguments, "tool Wrong.get: argument index must be a named one"),
        (tool_of_a_taken_name, "tool Wrong.check: ToolEnv has a method of this name"),
        (second_done, "`done` is built in"),
    ],
)
def test_wrong_tools_are_refused_when_the_class_is_made(
    define: Callable[[], None], text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        define()


def test_vector_environment_of_gymnasium_takes_it() -> None:
    envs = SyncVectorEnv([Sample, Sample])
    envs.reset(options={"numbers": [5]})
    observations, rewards, *_ = envs.step(
        (call_text("get", {"index": 0}), call_text("done", {"answer": [5]}))
    )
    assert tuple(observations) == ("5.0", "done")
    assert list(rewards) == [0.0, 1.0]
    envs.close()


def test_random_numbers_come_from_the_seed() -> None:
    class Dice(Sample):
        @tool
        def roll(self) -> int:
            """Roll a die."""
            return int(self.np_random.integers(1, 10**9))

    rolls = []
    for seed in (1, 1, 2):
        env = Dice()
        env.reset(seed=seed, options={"numbers": []})
        rolls.append(observe(env, "roll"))
    assert rolls[0] == rolls[1] != rolls[2]
