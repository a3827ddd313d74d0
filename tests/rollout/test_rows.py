"""Rows as they travel: what is packed, and what is refused."""

import numpy as np
import pytest

from rollout.types import Row, Span


def test_a_reply_is_packed_as_any_row_is() -> None:
    ids, logprobs = np.array([4, 5, 6], np.int32), np.array([-1, -2, -3], np.float32)
    spans = [Span(1, 0, 2), Span(2, 2, 3)]
    assert Row.sampled(ids, logprobs, spans) == Row.pack(ids, logprobs, [1, 1, 1], spans)
    assert Row.sampled(ids[:0], logprobs[:0], []) == Row.pack([], [], [], [])


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [Span(1, 0, 2)],
        [Span(1, 1, 3)],
        [Span(1, 0, 4)],
        [Span(1, 0, 1), Span(2, 2, 3)],
        [Span(1, 0, 2), Span(2, 1, 3)],
    ],
)
def test_a_reply_whose_spans_leave_out_tokens_or_overlap_is_refused(spans: list[Span]) -> None:
    with pytest.raises(ValueError, match="spans do not cover"):
        Row.sampled(np.zeros(3, np.int32), np.zeros(3, np.float32), spans)


def test_a_reply_with_another_number_of_logprobs_is_refused() -> None:
    with pytest.raises(ValueError, match="lengths differ: 3, 2"):
        Row.sampled(np.zeros(3, np.int32), np.zeros(2, np.float32), [Span(1, 0, 3)])
