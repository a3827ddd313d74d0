import pytest
import torch

from learner.batch import NOT_SAMPLED, Batch, LagError, pack, split
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


def test_rows_keep_their_tokens_log_probs_and_versions_in_place() -> None:
    row = Row.pack(
        [7, 8, 9, 10],
        [5.0, -1.0, 5.0, -2.0],
        [0, 1, 0, 1],
        [Span(3, 1, 2), Span(4, 3, 4, mixed_kv=True)],
    )
    short = make_row([5, 6], [0.0, -0.5], [0, 1], version=4)
    rollouts = [make_rollout([row], 1.0), make_rollout([short], 0.0, member=1)]
    (part,) = packed(make_batch([make_group(rollouts)], version=5)).micro_batches
    assert part.ids_BT.tolist() == [[7, 8, 9, 10], [5, 6, 0, 0]]
    # What the sampler reports of tokens that are not trained is not used.
    assert part.old_logprobs_BT.tolist() == [[0, -1, 0, -2], [0, -0.5, 0, 0]]
    assert part.mask_BT.tolist() == [[False, True, False, True], [False, True, False, False]]
    nothing = NOT_SAMPLED
    # The batch is computed at version 5.
    assert part.lags_BT.tolist() == [[nothing, 2, nothing, 1], [nothing, 1, nothing, nothing]]
    assert part.mixed_kv_BT.sum() == 1 and part.mixed_kv_BT[0, 3]
    assert part.advantages_BT.tolist() == [[0.5] * 4, [-0.5] * 4]


def test_every_row_of_a_rollout_has_its_advantage() -> None:
    rollouts = [make_rollout(rows_of([3, 4]), 1.0), make_rollout(rows_of([5]), 0.0, member=1)]
    (part,) = packed(make_batch([make_group(rollouts)])).micro_batches
    assert part.advantages_BT[:, 0].tolist() == [-0.5, 0.5, 0.5]


def test_advantages_compare_rollouts_of_the_same_group_only() -> None:
    groups = [
        make_group([make_rollout(rows_of([3]), 1.0), make_rollout(rows_of([4]), 1.0, member=1)]),
        make_group([make_rollout(rows_of([5]), 0.0), make_rollout(rows_of([6]), 0.0, member=1)]),
    ]
    (part,) = packed(make_batch(groups)).micro_batches
    assert not part.advantages_BT.any()


def test_micro_batches_hold_like_lengths_within_their_budget() -> None:
    parts = packed(batch_of(rows_of([2, 9, 3, 4, 30, 2, 8])), micro_batch_tokens=18).micro_batches
    # 30 tokens are more than the budget, and are a micro-batch of their own.
    assert [tuple(part.ids_BT.shape) for part in parts] == [(1, 30), (2, 9), (4, 4)]


def test_denominator_counts_every_trained_token_once() -> None:
    for budget in (1, 10, 1000):
        batch = packed(batch_of(rows_of([2, 9, 3])), micro_batch_tokens=budget)
        assert batch.num_trained_tokens == 3
        assert sum(int(part.mask_BT.sum()) for part in batch.micro_batches) == 3


def test_rows_without_a_trained_token_are_left_out() -> None:
    rows = [*rows_of([3]), make_row([1, 2, 3, 4], [0.0] * 4, [0] * 4)]
    (part,) = packed(batch_of(rows)).micro_batches
    assert part.ids_BT.shape == (1, 3)


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
    short = Row(
        token_ids_bytes=good.token_ids_bytes,
        logprobs_bytes=good.logprobs_bytes[:8],
        mask_bytes=good.mask_bytes,
        spans=good.spans,
    )
    with pytest.raises(ValueError, match="different lengths: 3, 2, 3"):
        packed(batch_of([short]))


def test_padding_is_never_trained() -> None:
    (part,) = packed(batch_of(rows_of([2, 6]))).micro_batches
    is_padding_BT = torch.arange(6)[None] >= torch.tensor([[6], [2]])
    assert not part.mask_BT[is_padding_BT].any()


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
        weights = torch.cat([part.weights_BT[part.mask_BT] for part in parts])
        assert weights.tolist() == pytest.approx([expected[0]] * 4 + [expected[1]])
        assert not any(part.weights_BT[~part.mask_BT].any() for part in parts)


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
    assert part.advantages_BT[:, 0].tolist() == pytest.approx(expected)


def test_a_batch_is_split_into_whole_groups() -> None:
    groups = [
        make_group([make_rollout(rows_of([3]), 1.0)], group_id=f"g{number}") for number in range(5)
    ]
    batch = make_batch(groups)
    parts = [[group.group_id for group in part.groups] for part in split(batch, 2)]
    assert parts == [["g0", "g2", "g4"], ["g1", "g3"]]
    assert [len(part.groups) for part in split(batch, 9)] == [1] * 5
    assert split(batch, 1) == [batch]
