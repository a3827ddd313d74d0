"""`synth.dedup`: which environments are one, and how much work it takes to tell."""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from envpool.task import Config
from synth.dedup import Deduped, Means, dedup, skeleton, text_pairs
from synth.records import Made
from synth.resemblance import shingles, similarities
from tests.synth.made import draw, make


class Solver:
    """Runs the solutions, which this test wrote, as the sandbox would."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, made: Made, configs: Sequence[Config]) -> list[Any]:
        self.asked.append(made.draft.env)
        names: dict[str, Any] = {}
        exec(made.draft.solutions[0], names)
        answers = []
        for config in configs:
            try:
                answers.append(names["solve"](*config.values()))
            except (TypeError, ValueError, IndexError, ZeroDivisionError):
                answers.append(None)
        return answers


async def sifted(*made: Made, threshold: float = 0.9) -> Deduped:
    return await dedup(made, answers=Solver(), threshold=threshold)


def ids(found: Sequence[Made]) -> list[str]:
    return [one.draft.env for one in found]


async def test_a_problem_told_in_other_words_is_a_duplicate() -> None:
    title = "Add up all that is stored in the register."
    first = make("total", "sum(numbers)", title=title)
    configs = [draw(seed) for seed in range(50, 56)]
    second = make("ledger", "sum(sorted(numbers)) + 0", title="Balance?", configs=configs)
    third = make("largest", "max(numbers)")
    found = await sifted(first, second, third)
    # The one with more tasks is kept.
    assert ids(found.kept) == ["ledger", "largest"]
    (refusal,) = found.refusals
    assert (refusal.env, refusal.stage, refusal.reason) == (
        "total",
        "dedup",
        "duplicate by answers",
    )
    assert refusal.detail == "as ledger, which is kept: the same answer to 10 of 10 shared inputs"


async def test_the_threshold_decides_and_the_rest_is_near() -> None:
    # Alike on three inputs of four.
    small = [{"numbers": [n, n + seed]} for seed, n in enumerate(range(1, 13), start=1)]
    first = make("total", "sum(numbers)", title="Add.", configs=small)
    value = "sum(numbers) if numbers[0] % 4 else 0"
    second = make("total_but", value, title="Unless?", configs=small)
    for threshold, kept in ((0.9, 2), (0.75, 1)):
        found = await sifted(first, second, threshold=threshold)
        assert len(found.kept) == kept
        assert len(found.refusals) == 2 - kept
        near = {one.means: one.alike for one in found.near}
        assert near.get(Means.ANSWERS) == (0.75 if kept == 2 else None)


async def test_one_answer_to_everything_is_no_agreement() -> None:
    configs = [{"numbers": [n + 1, n, n + 2]} for n in range(8)]
    first = make("is_sorted", "numbers == sorted(numbers)", configs=configs, answer="bool")
    value = "len(numbers) == 0"
    second = make("is_empty", value, title="Nothing?", configs=configs, answer="bool")
    assert len((await sifted(first, second)).kept) == 2


async def test_few_shared_inputs_are_no_agreement() -> None:
    few = [draw(1), draw(2)]
    first = make("total", "sum(numbers)", title="Add.", configs=few)
    second = make("sums", "sum(numbers[:])", title="What is there together?", configs=few)
    assert len((await sifted(first, second)).kept) == 2


async def test_inputs_that_are_none_for_the_other_do_not_count() -> None:
    short = [{"numbers": [n]} for n in range(6)]
    first = make("total", "sum(numbers)")
    value = "numbers[0] if len(numbers) == 1 else 1 // 0"
    second = make("single", value, title="The one?", configs=short)
    found = await sifted(first, second)
    # On the six inputs that both answer they are one.
    assert "6 of 6" in found.refusals[0].detail


async def test_a_problem_made_into_two_games_is_kept_on_one_side() -> None:
    first = make("total", "sum(numbers)", title="Add.", problem="sum_up")
    again = make("totals", "sum(numbers)", title="All in all?", problem="sum_up")
    other = msgspec.structs.replace(
        again,
        tasks=tuple(
            msgspec.structs.replace(task, trace=task.trace[1:] + task.trace[:1])
            for task in again.tasks
        ),
    )
    assert len((await sifted(first, again)).kept) == 1
    found = await sifted(first, other)
    assert len(found.kept) == 2
    assert any("by other calls" in pair.detail and pair.alike < 0.9 for pair in found.near)


async def test_the_work_grows_with_the_number_not_its_square() -> None:
    solver = Solver()
    made = [
        make(f"past_{n}", f"sum(numbers) * {2 * n + 1} + {n}", title=f"Number {n}?")
        for n in range(24)
    ]
    found = await dedup(made, answers=solver, threshold=0.9)
    assert len(found.kept) == 24
    assert len(solver.asked) == 24


def test_copies_are_alike_by_text_and_a_common_frame_is_not() -> None:
    values = [
        "sum(numbers)",
        "max(numbers)",
        "numbers.count(3)",
        "numbers[0] ** 2",
        "len(set(numbers))",
    ]
    titles = [
        "Add up what the register holds.",
        "Find the tallest of the towers in town.",
        "How often was a three thrown with this die?",
        "What is the area of the square whose side is written first?",
        "Count how many different guests signed the book.",
    ]
    made = [
        make(f"env_{n}", value, title=title)
        for n, (value, title) in enumerate(zip(values, titles, strict=True))
    ]
    copy = make("env_9", "sum(numbers)", title="Add up what the register holds.")
    pairs = text_pairs([*made, copy])
    assert [(one.first, one.second) for one in pairs] == [("env_0", "env_9")]
    assert pairs[0].alike >= 0.9
    frames = [shingles(one.draft.source) for one in made]
    shares = [len(a & b) / len(a | b) for a, b in itertools.combinations(frames, 2)]
    assert max(shares) > 0.7  # what all have in common would have made them one


def test_similarity_of_small_texts() -> None:
    texts = ["", "one", "one", "one two three four five", "# one\nOne two three FOUR five", "six"]
    found = {(a, b): alike for a, b, alike in similarities(texts, at_least=0.5)}
    assert found == {(1, 2): 1.0, (3, 4): 1.0}


def test_a_skeleton_forgets_names_and_repeats() -> None:
    long, short = draw(1, 20), draw(2, 3)
    one = make("total", "sum(numbers)", configs=[long])
    two = make("largest", "max(numbers)", configs=[short])
    assert skeleton(one) == skeleton(two) == {(0, 1), (1, 2), (2, 2), (2, 3)}
