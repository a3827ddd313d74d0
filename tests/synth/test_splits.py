"""`synth.splits`: nothing alike is on two sides, and the same seed gives the same sides."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import ConfigError
from configs.synth import SplitRecipe
from synth.records import Draft, Made
from synth.splits import Side, SplitError, Splits, check, split


def bare(env: str, concept: str = "", problem: str = "") -> Made:
    draft = Draft(
        env=env,
        problem=problem or env,
        concept=concept,
        origin="extract",
        source="",
        configs=(),
        solutions=("",),
    )
    return Made(draft=draft, tools=[], changes=(), tasks=())


MANY = [bare(f"env_{n}", concept=f"concept_{n % 20}") for n in range(100)]


def test_shares_are_met_by_whole_concepts() -> None:
    splits = split(MANY, SplitRecipe(validation=0.1, test=0.2))
    assert [len(splits.of(side)) for side in Side] == [70, 10, 20]
    concepts = [{one.draft.concept for one in MANY if one.draft.env in splits.of(s)} for s in Side]
    assert sum(map(len, concepts)) == len(set().union(*concepts)) == 20
    assert splits.side_of("env_0") is splits.side_of("env_20")


def test_the_seed_decides_and_nothing_else() -> None:
    recipe = SplitRecipe(seed=3)
    assert split(MANY, recipe) == split(MANY[::-1], recipe)
    assert split(MANY, recipe) != split(MANY, SplitRecipe(seed=4))


def test_a_new_concept_moves_few() -> None:
    before = split(MANY, SplitRecipe())
    after = split([*MANY, bare("new", concept="new")], SplitRecipe())
    moved = [
        one for one in MANY if before.side_of(one.draft.env) is not after.side_of(one.draft.env)
    ]
    assert len(moved) <= 10  # two concepts


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=4),
    st.integers(0, 99),
)
def test_every_environment_has_one_side(
    kinds: list[tuple[int, int]], near: list[tuple[int, int]], seed: int
) -> None:
    made = [
        bare(f"env_{n}", f"concept_{concept}" if concept else "", f"problem_{problem}")
        for n, (concept, problem) in enumerate(kinds)
    ]
    pairs = [(f"env_{a}", f"env_{b}") for a, b in near]
    splits = split(made, SplitRecipe(validation=0.3, test=0.3, seed=seed), pairs)
    check(splits, made)
    assert splits.train
    for first, second in pairs:
        if {first, second} <= {one.draft.env for one in made}:
            assert splits.side_of(first) is splits.side_of(second)


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"split\.validation=0\.5 and split\.test=0\.5"):
        split(MANY, SplitRecipe(validation=0.5, test=0.5))


def test_a_violated_split_is_told() -> None:
    made = [bare("a", "sums"), bare("b", "sums"), bare("c", "", "p"), bare("d", "", "p"), bare("e")]
    good = Splits(train=("a", "b", "e"), validation=("c", "d"), test=(), near=(("a", "e"),))
    check(good, made)
    for wrong, said in (
        ({"train": ("a", "e"), "test": ("b",)}, "concept 'sums'.*a is for train, b for test"),
        ({"validation": ("c",), "test": ("d",)}, "problem 'p'"),
        ({"train": ("a", "b"), "test": ("e",)}, "a and e are nearly alike"),
        ({"test": ("a",)}, "'a' is for train and for test"),
        ({"train": ("a", "b")}, "^e:"),
        ({"test": ("x",)}, "^x:"),
    ):
        with pytest.raises(SplitError, match=said):
            check(msgspec.structs.replace(good, **wrong), made)
