"""Variants that are won again, and pass rates by the shipped policy: kept, and asked once."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from configs.load import ConfigError
from configs.synth import FilterRecipe, VariationRecipe, VerifyRecipe
from envpool import sandbox
from envpool.task import VARIATION
from envpool.tools import call_text
from synth.court import Court, step
from synth.filters import task_key
from synth.progress import Stages
from synth.rating import KIND, rate
from synth.records import Made, PassRate
from synth.store import Store
from synth.varying import with_variants
from tests.synth.made import draw, make
from tests.synth.scripted_endpoint import Body, as_tool_call, tool_calls
from tests.synth.scripted_endpoint import serve as scripted

pytestmark = [
    pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking())),
    pytest.mark.timeout(120),
]

POLICY = str(Path(__file__).parents[2] / "configs" / "tiny_policy" / "policy")
FILTERS = FilterRecipe(
    model=POLICY, samples=2, max_reply_tokens=24, max_context_tokens=512, concurrency=4
)


@pytest.fixture
async def court() -> AsyncIterator[Court]:
    async with Court(VerifyRecipe(memory_mb=256)) as court:
        yield court


def total(*sizes: int) -> Made:
    return make("total", "sum(numbers)", configs=[draw(size, size) for size in sizes])


def records(folder: Path) -> list[Path]:
    return list((folder / KIND).glob("*"))


async def test_no_share_changes_nothing(court: Court) -> None:
    made = [total(3)]
    assert await with_variants(court, made, VariationRecipe()) == (made, [])


async def test_each_variant_is_won_and_stands_beside_the_plain_task(court: Court) -> None:
    made = total(3, 4, 5, 6)
    # Of the plain task: nobody has played the variant.
    rate = PassRate(model="m", won=1, samples=2)
    tasks = tuple(msgspec.structs.replace(one, pass_rate=rate) for one in made.tasks)
    made = msgspec.structs.replace(made, tasks=tasks)
    recipe = VariationRecipe(share=1.0, seed=3)
    (varied,), refusals = await with_variants(court, [made], recipe)
    assert not refusals and varied.tasks[:4] == made.tasks
    assert len(varied.tasks) == 8
    for plain, variant in zip(made.tasks, varied.tasks[4:], strict=True):
        config = dict(variant.config)
        assert config.pop(VARIATION) and config == plain.config
        assert variant.answer == plain.answer and variant.pass_rate is None
        assert variant.trace[-1].name and len(variant.trace) >= len(plain.trace)
    assert await with_variants(court, [made], recipe) == ([varied], [])


async def test_a_share_is_drawn_by_task_and_kinds_are_those_asked(court: Court) -> None:
    made = total(*range(2, 14))
    recipe = VariationRecipe(share=0.5, kinds=["budget"])
    (varied,), _ = await with_variants(court, [made], recipe)
    variants = varied.tasks[12:]
    assert 0 < len(variants) < 12
    assert all(set(one.config[VARIATION]) == {"budget"} for one in variants)
    (fewer,), _ = await with_variants(
        court, [msgspec.structs.replace(made, tasks=made.tasks[3:])], recipe
    )
    # Other tasks change nothing about one.
    assert set(map(repr, fewer.tasks[9:])) <= set(map(repr, variants))


async def test_a_variant_that_is_not_won_is_refused(court: Court) -> None:
    made = total(3, 4)
    lost = msgspec.structs.replace(made.tasks[0], trace=made.tasks[1].trace)
    broken = msgspec.structs.replace(made, tasks=(lost, made.tasks[1]))
    (varied,), (refusal,) = await with_variants(court, [broken], VariationRecipe(share=1.0))
    assert len(varied.tasks) == 3
    assert (refusal.stage, refusal.reason, refusal.env) == ("vary", "variant is not won", "total")
    assert refusal.config is not None and VARIATION in refusal.config and "reward" in refusal.detail


async def test_the_seed_decides_which_task_gets_what(court: Court) -> None:
    made, found = total(3, 4, 5, 6), []
    for seed in (0, 1):
        recipe = VariationRecipe(share=0.5, seed=seed)
        (varied,), _ = await with_variants(court, [made], recipe)
        found.append(varied.tasks)
    assert found[0] != found[1]


async def test_a_variant_is_told_and_traced_as_it_is_played(court: Court) -> None:
    made = total(3, 4)
    recipe = VariationRecipe(share=1.0, kinds=["rename", "budget"], seed=1)
    (varied,), _ = await with_variants(court, [made], recipe)
    variants = varied.tasks[2:]
    async with court.room({"draft.py": made.draft.source}) as room:
        for variant in variants:
            life = await room.open("total", variant.config)
            assert life.prompt == variant.prompt
            reward = 0.0
            for move in variant.trace:
                result = await step(life, call_text(move.name, move.arguments), room.timeout_s)
                assert result.observation == move.observation
                reward = result.reward
            assert reward == 1.0
            await life.close()
    assert {one.prompt for one in variants} - {one.prompt for one in made.tasks}


async def test_a_variant_without_an_end_or_a_beginning_is_refused(court: Court) -> None:
    made = total(3, 4)
    endless = msgspec.structs.replace(made.tasks[0], trace=made.tasks[0].trace[:-1])
    closed = msgspec.structs.replace(made.tasks[1], config={"numbers": "none"})
    broken = msgspec.structs.replace(made, tasks=(endless, closed))
    recipe = VariationRecipe(share=1.0, kinds=["rename"])
    (varied,), (first, second) = await with_variants(court, [broken], recipe)
    assert varied.tasks == (endless, closed)
    assert "reward 0 after 4 calls" in first.detail and "numbers" in second.detail


async def test_rates_are_measured_once_and_again_under_other_limits(
    court: Court, tmp_path: Path
) -> None:
    made, store = [total(2, 3)], Store(tmp_path, salt="code")
    stages = Stages(None)

    async def rated(recipe: FilterRecipe) -> dict[str, tuple[int, int]]:
        found = await rate(court, made, recipe, model=recipe.model, store=store, stages=stages)
        return {key: (one.won, one.samples) for key, one in found.items()}

    first = await rated(FILTERS)
    assert set(first) == {task_key("total", task) for task in made[0].tasks}
    assert all(samples == 2 for _, samples in first.values())
    (record,) = await asyncio.to_thread(records, tmp_path)
    text = await asyncio.to_thread(record.read_bytes)
    await asyncio.to_thread(record.write_bytes, text.replace(b'"won":0', b'"won":1'))
    assert set((await rated(FILTERS)).values()) == {(1, 2)}
    await rated(msgspec.structs.replace(FILTERS, max_reply_tokens=25))
    assert len(await asyncio.to_thread(records, tmp_path)) == 2


def wasteful(body: Body) -> Body:
    """The oracle, after ten calls that it does not need."""
    first, *others = body["messages"]
    if len(others) < 20:
        return tool_calls(("compare", {"first": 0, "second": 1}))
    return as_tool_call({**body, "messages": [first, *others[20:]]})


async def test_all_that_decides_a_rate_decides_whether_it_is_asked_anew(
    court: Court, tmp_path: Path
) -> None:
    made = [total(2, 3), make("double", "sum(numbers)", configs=[draw(9, 9)])]
    async with scripted(wasteful) as endpoint:
        recipe = msgspec.structs.replace(
            FILTERS, base_url=endpoint.url, samples=1, max_context_tokens=9999
        )

        async def asked(made: list[Made], recipe: FilterRecipe, model: str = "m") -> int:
            before = len(endpoint.requests)
            store = Store(tmp_path, salt="code")
            found = await rate(court, made, recipe, model=model, store=store, stages=Stages(None))
            assert len(found) == sum(len(one.tasks) for one in made)
            assert all(one.won == one.samples == recipe.samples for one in found.values())
            return len(endpoint.requests) - before

        # Ten calls, and those of the oracle.
        assert await asked(made, recipe) == 30 + 4 + 5 + 11
        assert await asked(made[::-1], recipe) == 0
        less = msgspec.structs.replace(made[0], tasks=made[0].tasks[:1])
        other = make("total", "sum(numbers)", title="Sum all.", configs=[draw(2, 2)])
        elsewhere = endpoint.url.replace("127.0.0.1", "localhost")
        assert await asked([less], recipe) == 14
        assert await asked([other], recipe) == 14
        assert await asked([less], recipe, model="other") == 14
        for change in (
            {"samples": 2},
            {"max_context_tokens": 9998},
            {"episode_timeout_s": 899.0},
            {"max_reply_tokens": 25},
            {"base_url": elsewhere},
        ):
            changed = msgspec.structs.replace(recipe, **change)
            assert await asked([less], changed) == 14 * changed.samples, change
            assert await asked([less], changed) == 0
        # How many are played at once, and what is kept, changes no rate.
        assert await asked([less], msgspec.structs.replace(recipe, concurrency=1, up_to=0.5)) == 0


async def test_another_model_in_the_same_directory_is_another(court: Court, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    await asyncio.to_thread(shutil.copytree, POLICY, folder)
    for number in (1, 2):
        recipe = msgspec.structs.replace(FILTERS, samples=1, model=str(folder))
        store = Store(tmp_path, salt="code")
        await rate(court, [total(2)], recipe, model=str(folder), store=store, stages=Stages(None))
        assert len(await asyncio.to_thread(records, tmp_path)) == number
        await asyncio.to_thread((folder / "config.json").touch)


async def test_what_an_endpoint_failed_is_asked_again(court: Court, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(
        FILTERS, base_url="http://127.0.0.1:9/v1", model="x", samples=1, episode_timeout_s=0.5
    )
    found = await rate(
        court,
        [total(2)],
        recipe,
        model="x",
        store=Store(tmp_path, salt="code"),
        stages=Stages(None),
    )
    assert not found and not await asyncio.to_thread(records, tmp_path)


async def test_a_key_that_is_not_there_is_said(court: Court, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(
        FILTERS, base_url="https://api.example.com/v1", model="x", key_env="NO_SUCH_KEY"
    )
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        await rate(
            court,
            [total(2)],
            recipe,
            model="x",
            store=Store(tmp_path, salt="code"),
            stages=Stages(None),
        )
