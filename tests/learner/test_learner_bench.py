import json

import pytest
import torch

from learner.bench import cli
from learner.bench.rollouts import Sizes, make_batch, rows_of
from learner.bench.shapes import SHAPES
from learner.bench.sides import Ours, Padded, Work

SIZES = Sizes(groups=2, members=3, prompt=20, turns=3, reply=6, observation=4)
VOCABULARY = SHAPES["tiny"].vocab


@pytest.mark.parametrize("recompute", [False, True])
def test_both_sides_take_the_same_steps(recompute: bool) -> None:
    work = Work(model="tiny", dtype="float32", micro_batch_tokens=120, recompute=recompute)
    batch = make_batch(SIZES, vocab=VOCABULARY, seed=0)
    sides = [side(work, torch.device("cpu")) for side in (Ours, Padded)]
    losses = [[side.step(batch) for _ in range(3)] for side in sides]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # It learns from one step to the next.
    assert losses[0][2] < losses[0][0]


def test_rollouts_are_ragged_and_share_their_prompt() -> None:
    batch = make_batch(SIZES, vocab=VOCABULARY, seed=0)
    for group in batch.groups:
        rows = [row for one in group.rollouts for row in one.rows]
        firsts = {tuple(row.token_ids[:15].tolist()) for row in rows}
        assert len(firsts) == 1 and not any(row.mask[:15].any() for row in rows)
    assert len({len(row.token_ids) for row in rows_of(batch)}) > 2


def test_what_a_step_needs_is_less_when_a_prompt_is_shared() -> None:
    work = Work(model="tiny", dtype="float32", micro_batch_tokens=10_000, recompute=False)
    batch = make_batch(SIZES, vocab=VOCABULARY, seed=0)
    ours, padded = (side(work, torch.device("cpu")).flops(batch) for side in (Ours, Padded))
    assert 0.4 * padded < ours < 0.9 * padded


def test_command_prints_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    small = (
        "--model tiny --rounds 1 --steps 1 --groups 1 --members 2 --prompt 20 --turns 1 --reply 4"
    )
    assert cli.main([*small.split(), "--json"]) == 0
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    ours, padded = result["sides"]["ours"], result["sides"]["padded"]
    for name, ratio in result["ratios"].items():
        assert ratio == pytest.approx(ours[name] / padded[name])
    assert set(result["ratios"]) >= {"tokens_per_s", "peak_memory"}
    assert "ours / padded" in text
