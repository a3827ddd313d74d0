import pytest
import torch

from learner.ratio import LEVELS, row_sums

# Rows 0 and 2 interleaved, row 1 without a trained token, row 3 of one token.
ROWS = torch.tensor([0, 2, 0, 2, 2, 3])
LOG_RATIOS = [0.2, -0.3, 0.4, 0.6, 0.3, -1.0]


def log_ratios() -> torch.Tensor:
    return torch.tensor(LOG_RATIOS, requires_grad=True)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", LOG_RATIOS),
        # row 0: .2 + .4; row 2: -.3 + .6 + .3; row 3: -1
        ("sequence", [0.6, 0.6, 0.6, 0.6, 0.6, -1.0]),
        # row 0: .6 / 2; row 2: .6 / 3
        ("geometric", [0.3, 0.2, 0.3, 0.2, 0.2, -1.0]),
    ],
)
def test_each_token_speaks_for_itself_or_for_its_row(level: str, expected: list[float]) -> None:
    values = LEVELS[level](log_ratios(), ROWS)
    torch.testing.assert_close(values.detach(), torch.tensor(expected))


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_each_token_has_its_own_gradient_alone(level: str) -> None:
    values = log_ratios()
    # The gradient of what the third token says: 1 to itself, nothing to the others of its row.
    LEVELS[level](values, ROWS)[2].backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_rows_may_be_cut_apart_into_micro_batches(level: str) -> None:
    values = torch.tensor(LOG_RATIOS)
    whole = LEVELS[level](values, ROWS)
    for row in (0, 2, 3):
        alone = LEVELS[level](values[row == ROWS], torch.zeros_like(ROWS[row == ROWS]))
        torch.testing.assert_close(alone, whole[row == ROWS])


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_no_token_is_no_mistake(level: str) -> None:
    nothing = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert LEVELS[level](*nothing).shape == (0,)


def test_sums_of_rows_leave_gaps_at_zero() -> None:
    sums = row_sums(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]), ROWS)
    assert sums.tolist() == [5.0, 0.0, 26.0, 32.0]
