"""`synth.filters`: the window of calls, the number of tools, the band of pass rates."""

from configs.synth import FilterRecipe
from synth.filters import by_pass_rate, by_shape, task_key, unsolved, with_rates
from synth.records import Made, PassRate
from tests.synth.made import draw, make


def sized(*sizes: int) -> Made:
    """Tasks whose traces have a length, as many looks as there are numbers, and an answer."""
    return make("total", "sum(numbers)", configs=[draw(size, size) for size in sizes])


def calls(made: Made) -> list[int]:
    return [task.num_calls for task in made.tasks]


def test_tasks_outside_the_window_are_refused() -> None:
    made = sized(7, 8, 20, 21)
    (kept,), refusals = (found := by_shape([made], FilterRecipe(max_calls=22))).kept, found.refusals
    assert calls(kept) == [10, 22]
    assert [(one.reason, one.config) for one in refusals] == [
        ("few calls", made.tasks[0].config),
        ("many calls", made.tasks[3].config),
    ]
    assert refusals[0].detail == "won in 9 calls; filters.min_calls=10"


def test_an_environment_needs_tools_and_tasks() -> None:
    made = sized(12)
    assert len(made.tools) == 4
    assert by_shape([made], FilterRecipe(min_tools=4)).kept == (made,)
    (refusal,) = by_shape([made], FilterRecipe(min_tools=5)).refusals
    assert (refusal.reason, refusal.config) == ("few tools", None)
    found = by_shape([sized(3)], FilterRecipe())
    assert not found.kept
    assert [one.reason for one in found.refusals] == ["few calls", "no task left"]


def rated(*won: int | None, samples: int = 4) -> Made:
    made = sized(*range(9, 9 + len(won)))
    rates = {
        task_key("total", task): PassRate(model="m", won=wins, samples=samples)
        for task, wins in zip(made.tasks, won, strict=True)
        if wins is not None
    }
    (one,) = with_rates([made], rates)
    return one


def test_the_band_keeps_what_can_be_learned() -> None:
    found = by_pass_rate(
        [rated(0, 1, 2, 3, 4, None)], FilterRecipe(model="m", above=0.25, up_to=0.75)
    )
    assert [task.pass_rate.won for task in found.kept[0].tasks if task.pass_rate] == [2, 3]
    assert [one.reason for one in found.refusals] == ["too hard", "too easy"]
    assert {one.stage for one in found.refusals} == {"pass rate"}
    assert [one.reason for one in found.quarantined] == ["never won", "not measured"]


def test_a_stronger_model_brings_tasks_back() -> None:
    made = rated(0, 0, 4)
    asked = unsolved([made])
    assert [task.num_calls for _, task in asked] == [11, 12]
    stronger = {
        task_key("total", task): PassRate(model="s", won=wins, samples=4)
        for (_, task), wins in zip(asked, (1, 0), strict=True)
    }
    found = by_pass_rate([made], FilterRecipe(model="m", above=0.25, up_to=1.0), stronger)
    assert calls(found.kept[0]) == [11, 13]
    assert [one.task.num_calls for one in found.quarantined] == [12]


def test_nothing_is_filtered_where_nothing_was_measured() -> None:
    made = rated(None, None)
    assert by_pass_rate([made], FilterRecipe()).kept == (made,)


def test_an_environment_that_loses_all_tasks_is_refused() -> None:
    found = by_pass_rate([rated(0, 4)], FilterRecipe(model="m"))
    assert not found.kept and len(found.quarantined) == 1
    assert [one.reason for one in found.refusals] == ["too easy", "no task left"]
