"""When an engine that is seen from outside was busy."""

from itertools import pairwise

from rollout.busy import BusyClock


def test_intervals_are_those_between_being_told() -> None:
    clock = BusyClock()
    assert clock.take() == []
    for is_busy in (True, True, False, False, True, False):
        clock.note(is_busy)
    intervals = clock.take()
    assert len(intervals) == 2
    assert clock.total_s == sum(end - start for start, end in intervals)
    assert clock.take() == []


def test_an_interval_that_goes_on_is_cut_without_a_gap() -> None:
    clock = BusyClock()
    clock.note(True)
    taken = [clock.take() for _ in range(3)]
    clock.note(False)
    taken.append(clock.take())
    spans = [one for intervals in taken for one in intervals]
    assert len(spans) == 4
    assert all(start <= end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert clock.take() == []
