"""Variations drawn for the shipped environments: won by the oracle, lost by a wrong answer."""

from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.load import ConfigError
from configs.sft import TraceRecipe
from envpool.envs import basics
from envpool.task import VARIATION
from envpool.variation import Variation, read_variation
from synth.traces import generate
from synth.traces import play as demonstrate
from synth.vary import KINDS, MAX_KINDS, draw_kinds, vary
from tests.envpool.varying import drawn, plain_trace, play, started

QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

any_env = st.sampled_from(sorted(basics))
any_seed = st.integers(0, 2**32 - 1)
some_kinds = st.lists(st.sampled_from(KINDS), unique=True)


@QUIET
@given(env_id=any_env, seed=any_seed, kinds=some_kinds, level=st.integers(0, 2))
def test_every_variant_is_won_by_the_oracle_and_lost_by_a_wrong_answer(
    env_id: str, seed: int, kinds: list[str], level: int
) -> None:
    config = drawn(env_id, seed, kinds, level=level)
    variation = read_variation(config[VARIATION], env_id)
    plays = []
    for off_by in (0, 0, 1, -1):
        env = started(env_id, config, seed=seed + abs(off_by))
        plays.append(play(env, env.oracle(), off_by=off_by))
    won, again, *lost = plays
    assert won[-1][2:] == (1.0, True)
    assert won == again
    assert [one[-1][2] for one in lost] == [0.0, 0.0]
    # The bounds that the variation promises.
    if variation.budget is not None:
        assert len(won) - 1 <= variation.budget
    if variation.fail is not None:
        in_a_row = 0
        for _, observation, _, _ in won:
            in_a_row = in_a_row + 1 if observation == variation.fail.message else 0
            assert in_a_row <= variation.fail.in_a_row


@QUIET
@given(env_id=any_env, seed=any_seed, kinds=some_kinds)
def test_a_drawn_variation_is_json_of_the_kinds_asked_and_the_same_for_a_seed(
    env_id: str, seed: int, kinds: list[str]
) -> None:
    tools = basics[env_id].tools()
    trace = plain_trace(env_id, basics[env_id].sample(Random(seed), 0))
    found = [vary(tools, Random(seed), kinds, trace=trace) for _ in range(2)]
    assert found[0] == found[1]
    assert msgspec.json.decode(msgspec.json.encode(found[0])) == found[0]
    assert set(found[0]) == set(kinds)
    # Nothing is known of the calls that are needed: there is no budget.
    assert "budget" not in vary(tools, Random(seed), kinds)


def test_renamed_tools_have_other_names_and_say_the_same() -> None:
    for env_id, env in basics.items():
        for seed in range(20):
            found = read_variation(vary(env.tools(), Random(seed), ["rename", "permute"]), env_id)
            for schema in env.tools()[:-1]:
                function = schema["function"]
                rename = found.rename[function["name"]]
                assert rename.name != function["name"]
                assert function["description"] in (rename.description or "")
                for name in function["parameters"]["properties"]:
                    assert found.permute[function["name"]].names[name] != name


def test_variants_differ_with_the_seed() -> None:
    tools = basics["sum_list"].tools()
    for kind in set(KINDS) - {"budget"}:
        texts = {msgspec.json.encode(vary(tools, Random(seed), [kind])) for seed in range(30)}
        assert len(texts) > 2, kind


def test_kinds_are_drawn_from_those_wanted_and_all_come() -> None:
    rng = Random(0)
    found = [draw_kinds([], rng) for _ in range(200)]
    assert {kind for kinds in found for kind in kinds} == set(KINDS)
    assert {len(kinds) for kinds in found} == set(range(1, MAX_KINDS + 1))
    assert all(len(set(kinds)) == len(kinds) for kinds in found)
    assert draw_kinds(["fail"], rng) == ["fail"]


def test_an_unknown_kind_is_refused() -> None:
    for call in (
        lambda: draw_kinds(["renmae"], Random(0)),
        lambda: vary([], Random(0), ["renmae"]),
    ):
        with pytest.raises(ConfigError, match=r"kinds has 'renmae': choose from rename"):
            call()


def test_pages_cut_something_of_the_trace() -> None:
    config = {"numbers": [3, 1, 4]}
    trace = plain_trace("sum_list", config)
    for seed in range(30):
        kinds = ["paginate", "noise"]
        variation = vary(basics["sum_list"].tools(), Random(seed), kinds, trace=trace)
        variation["noise"]["rate"] = 1.0
        variation["noise"]["templates"] = [max(variation["noise"]["templates"], key=len)]
        env = started("sum_list", {**config, VARIATION: variation})
        won = play(env, env.oracle())
        size = read_variation(variation, "").paginate
        assert size is not None
        assert all(
            len(observation.rpartition("\n[page")[0]) <= size.size for _, observation, *_ in won
        )
        assert won[-1][2] == 1.0


def test_a_demonstration_of_a_variant_is_played_with_its_tools() -> None:
    config = drawn("sum_list", 5, ["rename", "permute", "fail"])
    messages, reward = demonstrate(
        started("sum_list", config), config, Random(0), TraceRecipe(spoiled=0.0, max_turns=100)
    )
    names = [rename.name for rename in read_variation(config[VARIATION], "").rename.values()]
    assert reward == 1.0
    assert any(f'"name": "{names[0]}"' in message.content for message in messages)


def test_configurations_that_are_varied_are_demonstrated_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "varied_source.py").write_text(
        "from envpool.envs.sum_list import SumList\n"
        "class Own(SumList):\n"
        "    @classmethod\n"
        "    def sample(cls, rng, level):\n"
        "        variation = {'rename': {'get': {'name': 'read_item'}}}\n"
        "        return {**super().sample(rng, level), 'variation': variation}\n"
        "envs = {'own': Own}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = TraceRecipe(source="varied_source:envs", count=3, spoiled=0.0, max_turns=100)
    for row in generate(recipe):
        assert row.reward == 1.0
        assert [tool["function"]["name"] for tool in row.tools] == ["length", "read_item", "done"]


def test_no_variation_is_the_plain_task() -> None:
    assert vary(basics["sum_list"].tools(), Random(0), []) == {}
    assert read_variation({}, "") == Variation()
