"""Variants that are won again, and pass rates by the shipped policy: kept, and asked once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from configs.load import ConfigError
from configs.synth import FilterRecipe, VariationRecipe, VerifyRecipe
from envpool import sandbox
from envpool.task import VARIATION
from synth.court import Court
from synth.filters import task_key
from synth.progress import Stages
from synth.rating import KIND, rate
from synth.records import Made
from synth.store import Store
from synth.varying import with_variants
from tests.synth.made import draw, make

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
