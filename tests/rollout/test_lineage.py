"""Ages of versions across resumes, where numbers are skipped and none is reused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.lineage import Lineage


def test_without_a_resume_a_version_is_its_own_place() -> None:
    lineage = Lineage()
    assert lineage.place(7) == lineage.version(7) == 7
    assert lineage.lag(5, at=7) == 2


def test_a_resumed_run_counts_age_as_if_nothing_had_been_skipped() -> None:
    lineage = Lineage().resumed(place=40, version=58)
    assert lineage.version(40) == 58  # the checkpoint's weights under their new number
    assert lineage.version(39) == 39
    assert lineage.lag(40, at=58) == 0
    assert lineage.lag(39, at=58) == 1
    assert lineage.lag(39, at=59) == 2
    assert lineage.lag(58, at=60) == 2


def test_a_number_already_used_is_refused() -> None:
    with pytest.raises(ValueError, match="never reused"):
        Lineage().resumed(place=40, version=40)
    with pytest.raises(ValueError, match="never reused"):
        Lineage().resumed(place=40, version=58).resumed(place=50, version=68)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=5))
def test_any_number_of_resumes_keeps_order_and_finds_every_place(
    resumes: list[tuple[int, int]],
) -> None:
    """Each resume goes on some publishes after the last, under a number some way above."""
    lineage, surviving = Lineage(), [0]
    for published, skipped in resumes:
        surviving += [surviving[-1] + 1 + i for i in range(published)]
        place = lineage.place(surviving[-1])
        version = surviving[-1] + skipped
        lineage = lineage.resumed(place=place, version=version)
        surviving.append(version)
    places = [lineage.place(version) for version in surviving]
    assert places == sorted(places) and max(places, default=0) <= len(surviving)
    for version in surviving:
        newest = max(v for v in surviving if lineage.place(v) == lineage.place(version))
        assert lineage.version(lineage.place(version)) == newest
