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


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    # Of 4, the others' mean is (1 + 1 + 0) / 3.
    expected = [4 - 2 / 3, 1 - 5 / 3, 1 - 5 / 3, -2.0]
    np.testing.assert_allclose(ADVANTAGES["rloo"]([4, 1, 1, 0]), expected)


def test_maxrl_weighs_a_success_by_how_rare_it_is() -> None:
    # 1 of 4: (1 - 1/4) / (1/4); 3 of 4: (1 - 3/4) / (3/4)
    np.testing.assert_allclose(ADVANTAGES["maxrl"]([1, 0, 0, 0]), [3, -1, -1, -1])
    np.testing.assert_allclose(ADVANTAGES["maxrl"]([1, 1, 1, 0]), [1 / 3, 1 / 3, 1 / 3, -1])


def test_maxrl_refuses_rewards_that_are_no_likelihood() -> None:
    with pytest.raises(ValueError, match=r"below 0.*learner\.loss\.advantage"):
        ADVANTAGES["maxrl"]([1.0, -1.0])


def test_a_group_without_a_success_has_no_advantage() -> None:
    assert ADVANTAGES["maxrl"]([0.0, 0.0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_a_lone_rollout_has_no_advantage(name: str) -> None:
    assert ADVANTAGES[name]([0.7]).tolist() == [0.0]


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
