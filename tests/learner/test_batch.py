import msgspec
import pytest
import torch

from learner.batch import Batch, LagError, pack, split
from rollout.lineage import Lineage
from rollout.types import Row, Span, TrainBatch
from tests.learner.batches import loss_section, make_batch, make_group, make_rollout, make_row


def rows_of(lengths: list[int]) -> list[Row]:
    """Rows of the given lengths, of which the last token is trained."""
    return [make_row(range(n), [0.0] * (n - 1) + [-1.0], [0] * (n - 1) + [1]) for n in lengths]


def batch_of(rows: list[Row]) -> TrainBatch:
    """One rollout per row; the first is the only one with a reward."""
    rollouts = [make_rollout([row], float(i == 0), member=i) for i, row in enumerate(rows)]
    return make_batch([make_group(rollouts)])


def packed(batch: TrainBatch, *, micro_batch_tokens: int = 100) -> Batch:
    loss = loss_section(advantage="grpo_no_std")
    return pack(batch, loss=loss, micro_batch_tokens=micro_batch_tokens)


def test_trained_tokens_keep_their_log_probs_and_versions() -> None:
    row = Row.pack(
        [7, 8, 9, 10],
        [5.0, -1.0, 5.0, -2.0],
        [0, 1, 0, 1],
        [Span(4, 3, 4, mixed_kv=True), Span(3, 1, 2)],
    )
    short = make_row([5, 6], [0.0, -0.5], [0, 1], version=4)
    rollouts = [make_rollout([row], 1.0), make_rollout([short], 0.0, member=1)]
    (part,) = packed(make_batch([make_group(rollouts)], version=5)).micro_batches
    assert part.packed.ids_P.tolist() == [7, 8, 9, 10, 5, 6]
    assert part.packed.positions_P.tolist() == [0, 1, 2, 3, 0, 1]
    assert part.packed.sources_N.tolist() == [0, 2, 4]
    assert part.packed.targets_N.tolist() == [8, 10, 6]
    assert part.packed.rows_N.tolist() == [0, 0, 1]
    assert part.old_logprobs_N.tolist() == [-1, -2, -0.5]
    # The batch is computed at version 5.
    assert part.lags_N.tolist() == [2, 1, 1]
    assert part.mixed_kv_N.tolist() == [False, True, False]
    assert part.advantages_N.tolist() == [0.5, 0.5, -0.5]


def test_every_row_of_a_rollout_has_its_advantage() -> None:
    rollouts = [make_rollout(rows_of([3, 4]), 1.0), make_rollout(rows_of([5]), 0.0, member=1)]
    (part,) = packed(make_batch([make_group(rollouts)])).micro_batches
    # The longest row comes first.
    assert part.advantages_N.tolist() == [-0.5, 0.5, 0.5]


def test_advantages_compare_rollouts_of_the_same_group_only() -> None:
    groups = [
        make_group([make_rollout(rows_of([3]), 1.0), make_rollout(rows_of([4]), 1.0, member=1)]),
        make_group([make_rollout(rows_of([5]), 0.0), make_rollout(rows_of([6]), 0.0, member=1)]),
    ]
    (part,) = packed(make_batch(groups)).micro_batches
    assert not part.advantages_N.any()


def sizes(batch: Batch) -> list[int]:
    return [len(part.packed.ids_P) for part in batch.micro_batches]


def test_micro_batches_are_filled_up_to_their_budget() -> None:
    batch = packed(batch_of(rows_of([2, 7, 3, 4, 30, 2, 6])), micro_batch_tokens=12)
    # 30 tokens are more than the budget, and are a micro-batch of their own.
    assert sizes(batch) == [30, 7 + 4, 6 + 3 + 2, 2]


@pytest.mark.parametrize(("budget", "expected"), [(100, [31]), (29, [27, 24]), (5, [23, 24, 24])])
def test_what_rows_share_is_computed_once_in_each_micro_batch(
    budget: int, expected: list[int]
) -> None:
    prompt = list(range(20))
    rows = [
        make_row([*prompt, *more], [0.0] * (20 + len(more)), [0] * (19 + len(more)) + [1])
        for more in ([30, 31, 32], [33, 31, 32, 34], [35, 31, 32, 34])
    ]
    batch = packed(batch_of(rows), micro_batch_tokens=budget)
    assert sorted(sizes(batch), reverse=True) == sorted(expected, reverse=True)
    apart = pack(batch_of(rows), loss=loss_section(), micro_batch_tokens=100, share_prefix=False)
    assert sizes(apart) == [23 + 24 + 24]


def test_a_token_that_rows_share_is_trained_for_each() -> None:
    ids = list(range(12))
    rows = [
        make_row([*ids, 40 + i], [0.0] * 11 + [-1.0 - i, -3.0], [0] * 11 + [1, 1]) for i in range(2)
    ]
    (part,) = packed(batch_of(rows)).micro_batches
    assert part.packed.positions_P.tolist() == [*range(12), 12, 12]
    assert part.packed.targets_N.tolist() == [11, 40, 11, 41]
    assert part.packed.sources_N.tolist() == [10, 11, 10, 11]
    assert part.packed.rows_N.tolist() == [0, 0, 1, 1]
    assert part.old_logprobs_N.tolist() == [-1, -3, -2, -3]
    assert part.advantages_N.tolist() == [0.5, 0.5, -0.5, -0.5]


def test_a_row_that_is_the_beginning_of_another_shares_all_but_its_last_token() -> None:
    rows = rows_of([12, 15])
    (part,) = packed(batch_of(rows)).micro_batches
    assert part.packed.positions_P.tolist() == [*range(11), 11, 11, 12, 13, 14]
    assert part.packed.ids_P.tolist() == part.packed.positions_P.tolist()


def test_denominator_counts_every_trained_token_once() -> None:
    for budget in (1, 10, 1000):
        batch = packed(batch_of(rows_of([2, 9, 3])), micro_batch_tokens=budget)
        assert batch.num_trained_tokens == 3
        assert sum(len(part.packed.targets_N) for part in batch.micro_batches) == 3


def test_rows_without_a_trained_token_are_left_out() -> None:
    rows = [*rows_of([3]), make_row([1, 2, 3, 4], [0.0] * 4, [0] * 4)]
    (part,) = packed(batch_of(rows)).micro_batches
    assert part.packed.ids_P.tolist() == [0, 1, 2]


def test_a_batch_without_trained_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no token to train on"):
        packed(batch_of([make_row([1, 2], [0.0, 0.0], [0, 0])]))


def test_a_faulted_rollout_is_refused_by_the_name_of_its_group() -> None:
    rollouts = [make_rollout(rows_of([3]), 1.0), make_rollout(rows_of([3]), None, member=1)]
    with pytest.raises(ValueError, match=r"group 'broken'.*without a verdict"):
        packed(make_batch([make_group(rollouts, group_id="broken")]))


@pytest.mark.parametrize("version", [3, 4, 5])
def test_tokens_within_the_lag_bound_are_trained(version: int) -> None:
    row = make_row([1, 2], [0.0, -1.0], [0, 1], version=version)
    batch = make_batch([make_group([make_rollout([row], 1.0)])], version=5, max_lag=2)
    assert packed(batch).num_trained_tokens == 1


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            2,
            r"group 'g' \(member 0\), step 1.*version 2 are 3 versions old at version 5.*bound is 2",
        ),
        (6, r"group 'g' \(member 0\), step 1.*version 6 are newer than version 5"),
    ],
)
def test_a_single_token_outside_the_lag_bound_stops_the_batch(version: int, message: str) -> None:
    spans = [Span(5, 1, 3), Span(version, 3, 4)]
    row = Row.pack([1, 2, 3, 4], [0.0, -1.0, -1.0, -1.0], [0, 1, 1, 1], spans)
    with pytest.raises(LagError, match=message):
        packed(make_batch([make_group([make_rollout([row], 1.0)])], version=5, max_lag=2))


def test_ages_do_not_count_numbers_that_a_resumed_run_skipped() -> None:
    # 6, 7 and 8 were published after the checkpoint of 5, whose weights are 9.
    lineage = Lineage(skips=((9, 4),))
    spans = [Span(10, 1, 2), Span(9, 2, 3), Span(5, 3, 4), Span(4, 4, 5)]
    row = Row.pack([1, 2, 3, 4, 5], [0.0, -1.0, -1.0, -1.0, -1.0], [0, 1, 1, 1, 1], spans)
    batch = make_batch([make_group([make_rollout([row], 1.0)])], version=10, max_lag=2)
    (part,) = packed(msgspec.structs.replace(batch, lineage=lineage)).micro_batches
    assert part.lags_N.tolist() == [0, 1, 1, 2]
    with pytest.raises(LagError, match="version 5 are 5 versions old"):
        packed(batch)
    with pytest.raises(
        LagError, match="version 4 are 2 versions old at version 10; the bound is 1"
    ):
        packed(msgspec.structs.replace(batch, lineage=lineage, max_lag=1))


def test_one_token_of_before_a_rollback_leaves_out_its_row() -> None:
    mask = [0, 1, 1]
    both = Row.pack([1, 2, 3], [0.0, -1.0, -1.0], mask, [Span(3, 1, 2), Span(4, 2, 3)])
    rows = [both, make_row([1, 2, 3, 4], [0.0, 0.0, -1.0, -1.0], [0, 0, 1, 1], version=4)]
    batch = make_batch([make_group([make_rollout(rows, 1.0)])], version=5)
    made = pack(batch, loss=loss_section(), micro_batch_tokens=100, floor=4)
    (part,) = made.micro_batches
    # The denominator is that of all.
    assert part.weights_N.tolist() == [0.25, 0.25, 0.0, 0.0]
    assert not made.is_left_out
    assert pack(batch, loss=loss_section(), micro_batch_tokens=100, floor=5).is_left_out


def test_the_first_token_of_a_row_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="first token"):
        packed(batch_of([make_row([1, 2], [-1.0, -1.0], [1, 1])]))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_log_prob_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(
        ValueError, match=r"member 0.*log-probs of trained tokens are not all finite"
    ):
        packed(batch_of([make_row([1, 2], [0.0, value], [0, 1])]))


def test_a_record_from_the_wire_is_checked_again() -> None:
    good = make_row([1, 2, 3], [0.0, -1.0, -1.0], [0, 1, 1])
    uncovered = Row(
        token_ids_bytes=good.token_ids_bytes,
        logprobs_bytes=good.logprobs_bytes,
        mask_bytes=good.mask_bytes,
        spans=good.spans[:1],
    )
    with pytest.raises(ValueError, match="spans do not cover"):
        packed(batch_of([uncovered]))
    # Spans that cover the masked tokens, and places that no row has; and tokens that count twice.
    for mask, spans in [
        ([0, 1, 1], [Span(0, -2, 3)]),
        ([0, 1, 1], [Span(0, 1, 99)]),
        ([0, 1, 1], [Span(0, 1, 3), Span(0, 3, 4)]),
        ([0, 2, 1], [Span(0, 1, 3), Span(0, 1, 2)]),
    ]:
        odd = Row(
            token_ids_bytes=good.token_ids_bytes,
            logprobs_bytes=good.logprobs_bytes,
            mask_bytes=bytes(mask),
            spans=spans,
        )
        with pytest.raises(ValueError, match="spans do not cover"):
            packed(batch_of([odd]))
    short = Row(
        token_ids_bytes=good.token_ids_bytes,
        logprobs_bytes=good.logprobs_bytes[:8],
        mask_bytes=good.mask_bytes,
        spans=good.spans,
    )
    with pytest.raises(ValueError, match="different lengths: 3, 2, 3"):
        packed(batch_of([short]))


@pytest.mark.parametrize(
    ("aggregation", "constant_tokens", "expected"),
    [("token", 0, [1 / 5, 1 / 5]), ("sequence", 0, [1 / 8, 1 / 2]), ("constant", 10, [1 / 20] * 2)],
)
def test_weights_are_those_of_the_whole_batch(
    aggregation: str, constant_tokens: int, expected: list[float]
) -> None:
    # Four trained tokens in two rows of one rollout, and one in another.
    long = [make_row([1, 2, 3], [0, -1, -1], [0, 1, 1]) for _ in range(2)]
    rollouts = [
        make_rollout(long, 1.0),
        make_rollout(rows_of([2]), 0.0, member=1),
        # A rollout without a token to train on counts for nothing.
        make_rollout([make_row([1, 2], [0.0, 0.0], [0, 0])], 0.0, member=2),
    ]
    loss = loss_section(aggregation=aggregation, constant_tokens=constant_tokens)
    for budget in (1, 100):
        parts = pack(
            make_batch([make_group(rollouts)]), loss=loss, micro_batch_tokens=budget
        ).micro_batches
        weights = torch.cat([part.weights_N for part in parts])
        assert weights.tolist() == pytest.approx([expected[0]] * 4 + [expected[1]])


def test_long_rollouts_may_lose_reward() -> None:
    loss = loss_section(
        advantage="grpo_no_std", overlong="penalize", overlong_start=4, overlong_end=8
    )
    # 2, 6 and 8 tokens lose 0, 1/2 and 1: rewards become 1, 1/2 and -1. The longest row counts.
    rollouts = [
        make_rollout(rows_of([2]), 1.0),
        make_rollout(rows_of([3, 6]), 1.0, member=1),
        make_rollout(rows_of([8]), 0.0, member=2),
    ]
    (part,) = pack(
        make_batch([make_group(rollouts)]), loss=loss, micro_batch_tokens=100
    ).micro_batches
    mean = 0.5 / 3
    expected = [-1 - mean, 0.5 - mean, 0.5 - mean, 1 - mean]
    assert sorted(part.advantages_N.tolist()) == pytest.approx(expected)


def test_a_batch_is_split_into_whole_groups() -> None:
    groups = [
        make_group([make_rollout(rows_of([3]), 1.0)], group_id=f"g{number}") for number in range(5)
    ]
    batch = make_batch(groups)
    parts = [[group.group_id for group in part.groups] for part in split(batch, 2)]
    assert parts == [["g0", "g2", "g4"], ["g1", "g3"]]
    assert [len(part.groups) for part in split(batch, 9)] == [1] * 5
    assert split(batch, 1) == [batch]
