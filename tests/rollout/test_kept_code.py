"""A message about the copy of a pool names what its author wrote."""

import pytest

from rollout.kept_code import in_their_words


@pytest.mark.parametrize(
    ("source", "place"),
    [("/home/me/odd.py", "/home/me/odd.py:3"), ("/home/me/odd", "/home/me/odd/odd.py:3")],
)
def test_a_place_in_a_copy_is_one_in_the_source(source: str, place: str) -> None:
    told = in_their_words("1/0 at /runs/a/pools/odd-1/odd.py:3", "/runs/a/pools/odd-1", source)
    assert told == f"1/0 at {place}"
