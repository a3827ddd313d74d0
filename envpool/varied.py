"""`Varied`: an environment played by the rules of its configuration's `variation`.

    call -> budget -> name and arguments mapped back -> failure? -> environment -> noise -> pages

Towards whoever plays it, it is a `ToolEnv`: what ends an episode and what is right are the environment's
own. A transcript is a function of configuration, seed and actions, as the plain one is.
"""

from collections.abc import Mapping
from random import Random
from typing import Any

from envpool.env import Info, Oracle, ToolEnv, ToolInputError
from envpool.task import VARIATION
from envpool.tools import Arguments, Call, Schema, call_text, parse_call
from envpool.variation import (
    DONE,
    HOLE,
    Fail,
    Noise,
    Variation,
    num_pages,
    page_text,
    read_variation,
)
from envpool.varied_oracle import varied_oracle
from envpool.varied_tools import VariedTool, vary_tools

Stepped = tuple[str, float, bool, bool, Info]


def playable(env: ToolEnv, config: Any) -> "ToolEnv | Varied":
    """What a configuration is to be played on: `env` itself, or around it what its variation says."""
    return Varied(env) if isinstance(config, Mapping) and VARIATION in config else env


class Varied:
    """An environment and what stands before it. `reset` first."""

    def __init__(self, env: ToolEnv) -> None:
        self.env = env
        self._name = type(env).__name__
        self._begin(Variation())

    def _begin(self, variation: Variation) -> None:
        self._variation = variation
        self._tools, self._reword = vary_tools(type(self.env)._tools, variation, self._name)
        self._failures = Failures(variation.fail)
        self._is_over = False
        self._num_calls = 0
        self._num_noised = 0
        self._num_distracted: dict[str, int] = {}
        # The last observation that came in pages.
        self._long = ""

    def tools(self) -> list[Schema]:
        """OpenAI function schemas of all tools, `done` last."""
        return [tool.shown.schema for tool in self._tools.values()]

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, Info]:
        """Start an episode; raises ConfigError for a wrong configuration or variation."""
        config = dict(options or {})
        self._begin(read_variation(config.pop(VARIATION, {}), self._name))
        statement, info = self.env.reset(seed=seed, options=config)
        statement = self._reword(statement)
        if (budget := self._variation.budget) is not None:
            statement += f"\nAt most {budget} call{'s' * (budget > 1)} before {DONE}."
        return statement, info

    def step(self, action: str) -> Stepped:
        """Carry out one call, as `ToolEnv.step` does."""
        call = _call_of(action)
        if self._is_over or (call is not None and call.name == DONE):
            return self._end_with(self.env.step(action))
        if self._num_calls == self._variation.budget:
            return _answered(f"Error: no calls are left but {DONE}")
        self._num_calls += 1
        if call is None:
            return self._end_with(self.env.step(action))
        try:
            tool = self._tools.get(call.name)
            if tool is None:
                raise ToolInputError(f"tools are {', '.join(self._tools)}")
            return self._carry_out(tool, tool.check(call.arguments))
        except ToolInputError as error:
            return _answered(f"Error: {error}", is_bad_call=True)

    def oracle(self) -> Oracle:
        """The environment's own, which wins the varied task."""
        return varied_oracle(self.env.oracle(), self._variation)

    def reference(self) -> Any:
        return self.env.reference()

    def check(self, answer: Any) -> bool:
        return self.env.check(answer)

    def close(self) -> None:
        self.env.close()

    def _carry_out(self, tool: VariedTool, arguments: Arguments) -> Stepped:
        pages = self._variation.paginate
        if pages is not None and tool.shown.name == pages.tool:
            return _answered(self._page(arguments["page"], pages.size))
        if self._failures.hits(tool):
            assert self._variation.fail is not None
            return _answered(self._variation.fail.message)
        if tool.plain is None:
            return _answered(self._dressed(self._distract(tool)))
        stepped = self.env.step(call_text(tool.plain.name, arguments))
        observation, reward, is_over, is_cut, info = self._end_with(stepped)
        if info["is_bad_call"]:
            return self._reword(observation), reward, is_over, is_cut, info
        if is_over or is_cut:
            return stepped
        return self._dressed(observation), reward, is_over, is_cut, info

    def _end_with(self, stepped: Stepped) -> Stepped:
        self._is_over = stepped[2] or stepped[3]
        return stepped

    def _distract(self, tool: VariedTool) -> str:
        number = self._num_distracted.get(tool.shown.name, 0)
        self._num_distracted[tool.shown.name] = number + 1
        return tool.replies[number % len(tool.replies)]

    def _dressed(self, observation: str) -> str:
        """An observation with noise, or the first page of it."""
        if (noise := self._variation.noise) is not None:
            observation = noisy(observation, noise, self._num_noised)
            self._num_noised += 1
        pages = self._variation.paginate
        if pages is None or len(observation) <= pages.size:
            return observation
        self._long = observation
        return page_text(observation, 1, pages.size)

    def _page(self, page: int, size: int) -> str:
        if not 1 <= page <= num_pages(self._long, size):
            raise ToolInputError(f"there is no page {page}")
        return page_text(self._long, page, size)


class Failures:
    """Which calls fail for the moment."""

    def __init__(self, fail: Fail | None) -> None:
        self._fail = fail
        self._chance = Random(f"fail/{fail.seed}" if fail is not None else 0)
        self._num_in_a_row = 0

    def hits(self, tool: VariedTool) -> bool:
        """Whether this call fails."""
        fail = self._fail
        if fail is None:
            return False
        if fail.tools and (tool.plain is None or tool.plain.name not in fail.tools):
            return False
        is_hit = self._chance.random() < fail.rate and self._num_in_a_row < fail.in_a_row
        self._num_in_a_row = self._num_in_a_row + 1 if is_hit else 0
        return is_hit


def noisy(observation: str, noise: Noise, number: int) -> str:
    """The observation of a number, from 0, with the noise that is drawn for it."""
    chance = Random(f"noise/{noise.seed}/{number}")
    if chance.random() >= noise.rate:
        return observation
    before, _, after = chance.choice(noise.templates).partition(HOLE)
    return before + observation + after


def _call_of(action: str) -> Call | None:
    try:
        return parse_call(action)
    except ToolInputError:
        return None


def _answered(observation: str, *, is_bad_call: bool = False) -> Stepped:
    return observation, 0.0, False, False, {"is_bad_call": is_bad_call}
