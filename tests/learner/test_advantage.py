import numpy as np
import pytest

from learner.advantage import ADVANTAGES, STD_EPS


def test_grpo_divides_by_the_population_std() -> None:
    # mean 1/4, variance (9/16 + 3/16) / 4 = 3/16
    std = np.sqrt(3) / 4 + STD_EPS
    expected = [0.75 / std, -0.25 / std, -0.25 / std, -0.25 / std]
    np.testing.assert_allclose(ADVANTAGES["grpo"]([1, 0, 0, 0]), expected, rtol=1e-12)


def test_grpo_no_std_subtracts_the_mean() -> None:
    np.testing.assert_allclose(ADVANTAGES["grpo_no_std"]([1, 0, 0, 0]), [0.75, -0.25, -0.25, -0.25])


def test_grpo_does_not_blow_up_nearly_equal_rewards() -> None:
    assert np.abs(ADVANTAGES["grpo"]([1.0, 1.0 + 1e-9])).max() < 1e-3


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_equal_rewards_have_exactly_no_advantage(name: str) -> None:
    # The mean of three times 0.1 is not 0.1 in floating point.
    assert ADVANTAGES[name]([0.1, 0.1, 0.1]).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@pytest.mark.parametrize(
    ("rewards", "message"),
    [([1.0, None], "without a verdict"), ([1.0, float("nan")], "finite"), ([], "without rollouts")],
)
def test_a_group_with_a_missing_verdict_is_refused(
    name: str, rewards: list[float | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ADVANTAGES[name](rewards)
