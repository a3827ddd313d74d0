"""The environments that come with Millrace: winnable by calls alone, and not without them."""

import json
from collections import Counter
from random import Random
from typing import Any

import pytest

from envpool.env import ToolEnv, call_text
from envpool.envs import basics

# Replies that the tiny policy may give in a rollout.
MAX_CALLS = 12
NUM_CONFIGS = 150

every_env = pytest.mark.parametrize("env_id", list(basics))
every_level = pytest.mark.parametrize("level", [0, 1])

Play = list[tuple[str, str]]


def play_oracle(env: ToolEnv) -> tuple[float, Play]:
    """The reward of the oracle, and its actions with their observations."""
    oracle = env.oracle()
    wanted = next(oracle)
    play: Play = []
    while True:
        action = call_text(*wanted)
        observation, reward, terminated, _, info = env.step(action)
        assert not info["is_bad_call"], (action, observation)
        play.append((action, observation))
        if terminated:
            return reward, play
        wanted = oracle.send(observation)


def leaves(value: Any) -> list[int]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [leaf for item in inner for leaf in leaves(item)]
    return [value]


def start(env_id: str, config: dict[str, Any]) -> ToolEnv:
    env = basics[env_id]()
    env.reset(seed=0, options=config)
    return env


@every_level
@every_env
def test_oracle_wins_within_the_turns_of_a_rollout(env_id: str, level: int) -> None:
    rng = Random(1)
    lengths = []
    for _ in range(NUM_CONFIGS):
        reward, play = play_oracle(start(env_id, basics[env_id].sample(rng, level)))
        assert reward == 1.0
        lengths.append(len(play))
    assert max(lengths) <= MAX_CALLS
    assert level or 3 <= sum(lengths) / len(lengths) <= 8


@every_level
@every_env
def test_answer_without_a_look_is_worth_nothing(env_id: str, level: int) -> None:
    rng = Random(2)
    for _ in range(NUM_CONFIGS):
        env = start(env_id, basics[env_id].sample(rng, level))
        assert env.step(call_text("done", {}))[1:3] == (0.0, False)
        assert env.step(call_text("done", {"answer": 0}))[1:3] == (0.0, True)


@every_env
def test_best_constant_answer_is_poor(env_id: str) -> None:
    rng = Random(3)
    configs = [basics[env_id].sample(rng, 0) for _ in range(NUM_CONFIGS)]
    plays = [play_oracle(start(env_id, config))[1] for config in configs]
    for action, _ in Counter(play[-1][0] for play in plays).most_common(3):
        wins = sum(start(env_id, config).step(action)[1] for config in configs)
        assert wins < 0.45 * NUM_CONFIGS, action


@every_env
def test_wrong_answer_after_the_right_calls_loses(env_id: str) -> None:
    rng = Random(4)
    for _ in range(20):
        config = basics[env_id].sample(rng, 0)
        _, play = play_oracle(start(env_id, config))
        env = start(env_id, config)
        for action, _ in play[:-1]:
            env.step(action)
        answer = json.loads(play[-1][0])["arguments"]["answer"]
        assert env.step(call_text("done", {"answer": answer + 1}))[1:3] == (0.0, True)


@every_level
@every_env
def test_no_observation_reveals_more_than_one_value(env_id: str, level: int) -> None:
    rng = Random(5)
    for _ in range(NUM_CONFIGS):
        config = basics[env_id].sample(rng, level)
        _, play = play_oracle(start(env_id, config))
        assert len(leaves(config)) >= 2
        for _, observation in play:
            assert len(observation) <= len("swapped")
            assert len(observation.split()) == 1
        assert play[-1][1] == "done"


@every_env
def test_statement_is_short_and_says_nothing_hidden(env_id: str) -> None:
    rng = Random(6)
    statements = set()
    for _ in range(NUM_CONFIGS):
        env = basics[env_id]()
        config = basics[env_id].sample(rng, 0)
        statement, info = env.reset(seed=0, options=config)
        statements.add(statement)
        assert info == {}
        assert len(statement) <= 40
        if env_id == "guess_number":  # It is told its bounds, which leave at least eight numbers.
            assert statement == f"Find the number from {config['low']} to {config['high']}."
            assert config["high"] - config["low"] >= 7
    assert env_id == "guess_number" or len(statements) == 1


@every_env
def test_same_actions_give_the_same_observations(env_id: str) -> None:
    config = basics[env_id].sample(Random(7), 1)
    assert play_oracle(start(env_id, config)) == play_oracle(start(env_id, config))
    env = start(env_id, config)
    first = play_oracle(env)
    env.reset(seed=0, options=config)
    assert play_oracle(env) == first


@every_env
def test_training_level_has_thousands_of_configurations(env_id: str) -> None:
    rng = Random(8)
    drawn = [json.dumps(basics[env_id].sample(rng, 0)) for _ in range(4000)]
    # By the birthday bound, 4000 draws of 30,000 equally likely ones leave about 3,750 different.
    assert len(set(drawn)) > 2000


@every_env
def test_harder_level_is_larger(env_id: str) -> None:
    def mean_calls(level: int) -> float:
        rng = Random(9)
        plays = [play_oracle(start(env_id, basics[env_id].sample(rng, level))) for _ in range(60)]
        return sum(len(play) for _, play in plays) / len(plays)

    assert mean_calls(1) > 1.3 * mean_calls(0)


def test_bubble_sort_must_be_sorted_before_it_is_answered() -> None:
    env = start("bubble_sort", {"numbers": [3, 2, 1]})
    assert env.step(call_text("order", {"index": 0}))[0] == "swapped"
    assert env.step(call_text("done", {"answer": 1}))[1:3] == (0.0, True)


def test_guess_is_told_the_direction() -> None:
    env = start("guess_number", {"low": 1, "high": 20, "number": 7})
    replies = [env.step(call_text("guess", {"number": n}))[0] for n in (6, 7, 8, 500)]
    assert replies == ["higher", "equal", "lower", "lower"]


def test_price_total_multiplies() -> None:
    items = [{"price": 3, "quantity": 2}, {"price": 10, "quantity": 5}]
    env = start("price_total", {"items": items})
    assert env.step(call_text("done", {"answer": 56}))[1] == 1.0


@every_env
def test_tool_names_are_snake_case_and_few(env_id: str) -> None:
    names = [schema["function"]["name"] for schema in basics[env_id].tools()]
    assert 2 <= len(names) <= 4
    assert names[-1] == "done"
    assert all(name.isidentifier() and name.islower() for name in names)
