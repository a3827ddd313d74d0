"""`synth.traces`: what the demonstrator does, and on which configurations."""

import json
from collections import Counter
from random import Random

import pytest

from configs.load import ConfigError
from configs.sft import MessagesRow, TraceRecipe
from envpool.envs import basics
from envpool.task import Split, config_split
from rollout import toolcall
from synth.traces import Mistake, call_text, generate, spoil

_SHOWN = [env_id for env_id in basics if env_id != "price_total"]


def actions(row: MessagesRow) -> list[str]:
    return [toolcall.parse(m.content) for m in row.messages if m.role == "assistant"]


def test_every_episode_is_won_when_nothing_is_spoiled() -> None:
    rows = generate(TraceRecipe(envs=_SHOWN, count=70, spoiled=0.0))
    assert [row.env for row in rows] == _SHOWN * 10
    assert [row.reward for row in rows] == [1.0] * 70
    roles = [message.role for message in rows[0].messages]
    assert roles == ["user", *["assistant", "tool"] * (len(roles) // 2 - 1), "assistant"]
    assert [tool["function"]["name"] for tool in rows[0].tools] == ["length", "get", "done"]


def test_only_training_configurations_are_played() -> None:
    # A game that is won tells its whole configuration: the bounds in the task, the number in the end.
    rows = generate(TraceRecipe(envs=["guess_number"], count=200, spoiled=0.0))
    for row in rows:
        words = row.messages[0].content.rstrip(".").split()
        number = json.loads(actions(row)[-1])["arguments"]["answer"]
        config = {"low": int(words[-3]), "high": int(words[-1]), "number": number}
        assert config_split("guess_number", config) is Split.TRAIN


def test_replies_are_calls_in_the_format_of_the_template() -> None:
    for row in generate(TraceRecipe(envs=_SHOWN, count=70, spoiled=0.0)):
        for message in row.messages:
            if message.role == "assistant":
                assert message.content.startswith('<tool_call>\n{"name": "')
                assert message.content.endswith("}}\n</tool_call>")


def test_a_fifth_of_the_calls_is_spoiled() -> None:
    recipe, rng, count = TraceRecipe(spoiled=0.2), Random(0), 20_000
    right = call_text("get", {"index": 50})
    kinds: Counter[str] = Counter()
    for _ in range(count):
        text = spoil("get", {"index": 50}, rng, recipe)
        if text == right:
            kinds["right"] += 1
        elif text == right[:-1]:
            kinds[Mistake.BROKEN_JSON] += 1
        elif json.loads(text)["name"] == "done":
            kinds[Mistake.EARLY_DONE] += 1
        else:
            assert 0 < abs(json.loads(text)["arguments"]["index"] - 50) <= 3
            kinds[Mistake.WRONG_NUMBER] += 1
    shares = {kind: kinds[kind] / count for kind in ("right", *Mistake)}
    expected = {"right": 0.8, "wrong_number": 0.1, "early_done": 0.06, "broken_json": 0.04}
    assert shares == pytest.approx(expected, abs=0.01)


def test_spoiled_calls_are_part_of_the_demonstration() -> None:
    rows = generate(TraceRecipe(envs=["find_max"], count=300, clean=0.0))
    assert 0.3 < sum(row.reward for row in rows) / len(rows) < 0.8
    texts = [message.content for row in rows for message in row.messages]
    assert any(text.startswith("Error") for text in texts)
    assert max(len(actions(row)) for row in rows) <= TraceRecipe().max_turns


def test_first_episodes_are_clean() -> None:
    rows = generate(TraceRecipe(envs=["find_max"], count=300, clean=0.5))
    assert all(row.reward == 1.0 for row in rows[:150])
    assert not all(row.reward == 1.0 for row in rows[150:])


def test_a_hasty_hand_answers_with_the_last_number_it_saw() -> None:
    recipe = TraceRecipe(
        envs=["find_max"], count=200, clean=0.0, spoiled=0.0, hasty=1.0, patience=3
    )
    for row in generate(recipe):
        calls = [json.loads(action) for action in actions(row)]
        seen = [message.content for message in row.messages if message.role == "tool"]
        length = int(seen[0])
        assert len(calls) == min(length + 2, 4) and calls[-1]["name"] == "done"
        if length > 2:
            assert calls[-1]["arguments"]["answer"] == int(seen[-1])
        else:
            assert row.reward == 1.0


def test_a_hasty_hand_that_reads_no_number_answers_with_its_last_guess() -> None:
    recipe = TraceRecipe(
        envs=["guess_number"], count=50, clean=0.0, spoiled=0.0, hasty=1.0, patience=1
    )
    hasty = [row for row in generate(recipe) if len(actions(row)) == 2]
    assert hasty
    for row in hasty:
        guess, answer = (json.loads(action)["arguments"] for action in actions(row))
        assert answer["answer"] == guess["number"]


def test_the_share_of_hasty_episodes_is_the_recipes() -> None:
    recipe = TraceRecipe(
        envs=["walk_list"], count=400, clean=0.5, spoiled=0.0, hasty=0.6, patience=2
    )
    rows = generate(recipe)
    assert all(row.reward == 1.0 for row in rows[:200])
    hasty = sum(row.reward == 0.0 for row in rows[200:])
    assert 90 <= hasty <= 150  # 120 expected; each of them stops before the end of its list


def test_recipe_is_refused_when_it_cannot_be_played() -> None:
    with pytest.raises(ConfigError, match="sum_lst"):
        generate(TraceRecipe(envs=["sum_lst"]))
    with pytest.raises(ConfigError, match="no mistake has a weight"):
        generate(TraceRecipe(wrong_number=0, early_done=0, broken_json=0))
