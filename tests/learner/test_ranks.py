import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from configs.lora import LoraSection
from learner.ranks import Ranks, RanksError
from rollout.model import load_model
from rollout.types import RankPlace, Row, StopReason, TrainBatch, encode
from rollout.weights import read_tensors
from tests.learner import ranked
from tests.learner.batches import loss_section, make_batch, make_group, sampled_group
from tests.learner.crew import Crew
from tests.models import tiny_qwen2, tiny_qwen3

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def crews() -> Iterator[dict[int, Crew]]:
    made: dict[int, Crew] = {}
    yield made
    for crew in made.values():
        crew.close()


@pytest.fixture(params=[2])
def crew(request: pytest.FixtureRequest, crews: dict[int, Crew]) -> Crew:
    """As many ranks as a test asks for, which outlive it: two, if it does not say."""
    return crew_of(request.param, crews)


def crew_of(size: int, crews: dict[int, Crew]) -> Crew:
    if size not in crews:
        crews[size] = Crew(size)
    return crews[size]


TWO_AND_FOUR = pytest.mark.parametrize("crew", [2, 4], indirect=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, and with sizes that neither 2 nor 4 divide."""
    path = tmp_path_factory.mktemp("model")
    return tiny_qwen3(path, vocab_size=61, hidden=30, head_dim=32, ffn=50)


def batches(model: Path, *, shift: float = 0.3, steps: int = 2) -> list[bytes]:
    """Of steps 1 and on; rows are of all lengths."""
    sampler = load_model(model, "float32")
    return [
        encode(
            make_batch(
                [sampled_group(sampler, seed=10 * step + i, shift=shift) for i in range(2)],
                step=step,
                publish_version=step,
            )
        )
        for step in range(1, steps + 1)
    ]


def alone(model: Path, directory: Path, *args: Any, **kwargs: Any) -> ranked.Result:
    """What one rank does."""
    return ranked.train(Ranks(), model, directory, *args, **kwargs)


def compare(one: ranked.Result, other: ranked.Result, *, rtol: float = 1e-4) -> None:
    """Gradients, metrics and weights are the same but for the order of sums."""
    torch.testing.assert_close(other["gradients"], one["gradients"], rtol=rtol, atol=1e-6)
    for mine, theirs in zip(one["metrics"], other["metrics"], strict=True):
        plain = {k: v for k, v in mine.items() if not k.startswith("time/")}
        found = {k: v for k, v in theirs.items() if not k.startswith("time/")}
        assert found == pytest.approx(plain, rel=rtol, abs=1e-6)
    torch.testing.assert_close(other["weights"], one["weights"], rtol=1e-3, atol=1e-5)


LOSSES = {
    "clip": {},
    "sequence": {"level": "sequence", "aggregation": "sequence", "entropy_coef": 0.1},
    "m2po": {"correction": "m2po", "m2po_budget": 0.03, "kl_coef": 0.1},
    "decoupled": {"correction": "decoupled", "proximal": "recomputed"},
}


@pytest.mark.parametrize(
    ("crew", "loss"), [*((2, loss) for loss in LOSSES), (4, "clip")], indirect=["crew"]
)
def test_several_ranks_step_like_one(crew: Crew, model: Path, tmp_path: Path, loss: str) -> None:
    section = {"loss": loss_section(**LOSSES[loss]), "micro_batch_tokens": 24, "grad_clip": 0.05}
    section["activation_checkpointing"] = loss == "sequence"
    if loss == "decoupled":
        section["updates_per_batch"] = 2
    given = batches(model)
    expected = alone(model, tmp_path, given, section=section)
    assert min(one["optim/grad_norm"] for one in expected["metrics"]) > 0.05
    if loss == "m2po":
        assert all(0.0 < one["loss/mask_frac"] < 0.9 for one in expected["metrics"])
    found = crew.call(ranked.train, model, tmp_path, given, "float32", section)
    for result in found:
        compare(expected, result)
    # Each has a part of the weights, and all have all of them.
    total = sum(result["num_here"] for result in found)
    assert total == expected["num_here"]
    assert max(result["num_here"] for result in found) < 0.7 * total
    # The first alone publishes.
    manifests = [result["manifests"][-1] for result in found]
    assert manifests[0] is not None and manifests[1:] == [None] * (len(found) - 1)
    published = read_tensors(manifests[0])
    torch.testing.assert_close(published, found[0]["weights"], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranks_train_adapters_as_one_does(
    crew: Crew, model: Path, tmp_path: Path, dtype: str
) -> None:
    section: dict[str, Any] = {
        "lora": LoraSection(rank=3, alpha=6),
        "loss": loss_section(kl_coef=0.1),
        "activation_checkpointing": True,
        "micro_batch_tokens": 24,
        "lr": 1e-2,
    }
    given, more = batches(model), batches(model, steps=3)[2:]
    kept, base = tmp_path / "kept", load_model(model, dtype).state_dict()
    expected = alone(model, tmp_path, given, dtype=dtype, section=section)
    assert expected["metrics"][1]["loss/kl_ref"] > 1e-4
    found = crew.call(ranked.train, model, tmp_path, given, dtype, section, None, kept)
    for result in found:
        if dtype == "float32":
            compare(expected, result)
        assert result["metrics"][1]["loss/total"] == pytest.approx(
            expected["metrics"][1]["loss/total"], rel=5e-2, abs=1e-3
        )
        assert all(".lora_" in name for name in result["at_end"])
        for name, weight in result["weights"].items():
            is_adapted = name.endswith("_proj.weight")
            assert torch.equal(weight, base[name].float()) != is_adapted, name
    published = read_tensors(found[0]["manifests"][-1])
    assert {one.dtype for one in published.values()} == {getattr(torch, dtype)}
    # And goes on as one, with what each had a part of.
    resumed = alone(model, tmp_path, more, dtype=dtype, section=section, restore=kept)
    for result in found:
        torch.testing.assert_close(resumed["at_start"], result["at_end"], rtol=0, atol=0)
    torch.testing.assert_close(
        dict(AutoModelForCausalLM.from_pretrained(kept / "hf").state_dict()),
        published,
        rtol=0,
        atol=0,
    )


@TWO_AND_FOUR
def test_ranks_without_work_take_part(crew: Crew, model: Path, tmp_path: Path) -> None:
    # One row, in a batch of one group: whoever does not get it has no row at all.
    sampler = load_model(model, "float32")
    rollouts = sampled_group(sampler, seed=3, shift=0.2).rollouts[:2]
    # And one without a token to train on.
    empty = msgspec.structs.replace(rollouts[1], rows=[])
    given = [encode(make_batch([make_group([rollouts[0], empty])]))]
    expected = alone(model, tmp_path, given)
    assert any(one.abs().sum() > 0 for one in expected["gradients"][0])
    for result in crew.call(ranked.train, model, tmp_path, given):
        compare(expected, result)


def test_a_rank_whose_tokens_are_left_out_takes_part(
    crew: Crew, model: Path, tmp_path: Path
) -> None:
    sampler = load_model(model, "float32")
    group = sampled_group(sampler, seed=3, shift=0.2, rewards=(1.0, 0.0, 1.0, 0.0))
    cut = [
        msgspec.structs.replace(one, stop=StopReason.MAX_TOKENS) if i else one
        for i, one in enumerate(group.rollouts)
    ]
    given = [encode(make_batch([make_group(cut)]))]
    section = {"loss": loss_section(overlong="mask"), "micro_batch_tokens": 1}
    expected = alone(model, tmp_path, given, section=section)
    for result in crew.call(ranked.train, model, tmp_path, given, "float32", section):
        compare(expected, result)


def test_bfloat16_computes_as_one_rank_does(crew: Crew, model: Path, tmp_path: Path) -> None:
    given = batches(model)
    expected = alone(model, tmp_path, given, dtype="bfloat16")
    for result in crew.call(ranked.train, model, tmp_path, given, "bfloat16"):
        one, other = expected["metrics"][0], result["metrics"][0]
        for key in ("loss/total", "loss/entropy", "optim/grad_norm"):
            assert other[key] == pytest.approx(one[key], rel=2e-2, abs=1e-3)
        # What is kept moves by steps that bfloat16 cannot hold; what is published is rounded.
        kept = result["at_end"]["weight.model.embed_tokens.weight"]
        assert not torch.equal(kept, kept.bfloat16().float())
        if manifest := result["manifests"][-1]:
            published = read_tensors(manifest)["model.embed_tokens.weight"]
            assert torch.equal(published, kept.bfloat16())


def test_a_tied_head_is_one_weight(crew: Crew, tmp_path: Path) -> None:
    path = tiny_qwen2(tmp_path / "tied")
    given = batches(path)
    expected = alone(path, tmp_path, given)
    for result in crew.call(ranked.train, path, tmp_path, given):
        compare(expected, result)
        assert "lm_head.weight" not in result["weights"]


def broken(model: Path) -> TrainBatch:
    """A batch of which one row alone has a ratio that overflows."""
    group = sampled_group(load_model(model, "float32"), seed=5, shift=0.1)
    *good, last = group.rollouts
    row = last.rows[0]
    worse = Row.pack(row.token_ids, row.logprobs - 1e4 * row.mask, row.mask, row.spans)
    rollouts = [*good, msgspec.structs.replace(last, rows=[worse])]
    return make_batch([make_group(rollouts)], step=3)


def test_a_loss_that_is_no_number_on_one_rank_stops_all(
    crew: Crew, model: Path, tmp_path: Path
) -> None:
    before = crew.call(ranked.train, model, tmp_path, batches(model))
    for error in crew.call(ranked.train_on, encode(broken(model))):
        assert "NonFiniteLossError: step 3" in str(error)
    for result, after in zip(before, crew.call(ranked.weights_now), strict=True):
        torch.testing.assert_close(after, result["weights"], rtol=0, atol=0)


@TWO_AND_FOUR
def test_checkpoints_load_with_any_number_of_ranks(crew: Crew, model: Path, tmp_path: Path) -> None:
    given, more = batches(model), batches(model, steps=3)[2:]
    size = len(crew.processes)
    for dtype in ("float32", "bfloat16") if size == 2 else ("float32",):
        of_one, of_many = tmp_path / f"one-{dtype}", tmp_path / f"many-{dtype}"
        written = crew.call(ranked.train, model, tmp_path, given, dtype, None, None, of_many)
        single = alone(model, tmp_path, given, dtype=dtype, save=of_one)
        assert len(list((of_many / "resume" / "slices").iterdir())) == size
        # From many to one, from one to many, and from many to many.
        resumed = alone(model, tmp_path, more, dtype=dtype, restore=of_many)
        for result in written:
            torch.testing.assert_close(resumed["at_start"], result["at_end"], rtol=0, atol=0)
        ranks = crew.call(ranked.train, model, tmp_path, more, dtype, None, of_one)
        again = crew.call(ranked.train, model, tmp_path, more, dtype, None, of_many)
        for one, many in zip(ranks, again, strict=True):
            torch.testing.assert_close(one["at_start"], single["at_end"], rtol=0, atol=0)
            torch.testing.assert_close(many["at_start"], written[0]["at_end"], rtol=0, atol=0)
            assert one["place"] == many["place"] == resumed["place"] == (3, 3)
            if dtype == "float32":
                compare(resumed, many)
        loaded = AutoModelForCausalLM.from_pretrained(of_many / "hf")
        with safe_open(of_many / "hf" / "model.safetensors", "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {loaded.dtype}  # noqa: SIM118
        assert str(loaded.dtype) == f"torch.{dtype}"
        rounded = {name: one.to(loaded.dtype) for name, one in written[0]["weights"].items()}
        torch.testing.assert_close(dict(loaded.state_dict()), rounded, rtol=0, atol=0)


def test_the_number_of_ranks_may_change_from_step_to_step(
    crews: dict[int, Crew], model: Path, tmp_path: Path
) -> None:
    given = batches(model, steps=4)
    # The bound and the warm-up act in every step: what is lost on the way would show.
    section = {"grad_clip": 0.05, "warmup_steps": 4, "lr": 1e-3, "micro_batch_tokens": 24}
    expected = alone(model, tmp_path, given, section=section)
    before, saved, results = None, None, list[ranked.Result]()
    for step, size in enumerate((2, 4, 2, 1), start=1):
        args = model, tmp_path, given[step - 1 : step], "float32", section, saved
        saved = tmp_path / f"step_{step}"
        if size == 1:
            results = [ranked.train(Ranks(), *args, saved)]
        else:
            results = crew_of(size, crews).call(ranked.train, *args, saved)
        for result in results:
            if before is not None:
                torch.testing.assert_close(result["at_start"], before, rtol=0, atol=0)
            assert result["place"] == (step, step)
            (found,), (metrics,) = result["gradients"], result["metrics"]
            torch.testing.assert_close(found, expected["gradients"][step - 1], rtol=1e-3, atol=1e-6)
            wanted = expected["metrics"][step - 1]
            for key in ("loss/total", "loss/entropy", "kl/engine_max", "optim/lr"):
                assert metrics[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-6)
            assert metrics["optim/grad_norm"] == pytest.approx(wanted["optim/grad_norm"], rel=1e-3)
        before = results[0]["at_end"]
    # As if one rank had taken all of the steps.
    torch.testing.assert_close(results[0]["weights"], expected["weights"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(before, expected["at_end"], rtol=1e-3, atol=1e-5)


def test_the_death_of_a_rank_ends_the_others(model: Path, tmp_path: Path) -> None:
    crew = Crew(2)
    try:
        crew.call(ranked.train, model, tmp_path, batches(model, steps=1))
        crew.begin(ranked.die, 1, batches(model)[1])
        assert "Error" in str(crew.answer(0))
        crew.processes[1].join()
        assert crew.processes[1].exitcode == -signal.SIGKILL
    finally:
        crew.close()


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_given_up(model: Path, tmp_path: Path) -> None:
    crew = Crew(2, deadline_s=10.0)
    try:
        crew.call(ranked.train, model, tmp_path, batches(model, steps=1))
        answers = crew.call(ranked.dawdle, 1, batches(model)[1])
        assert answers[1] is None
        assert isinstance(answers[0], RuntimeError)
    finally:
        crew.close()


def test_ranks_that_do_not_meet_say_so() -> None:
    place = RankPlace(rank=1, size=2, address="127.0.0.1", port=1)
    with pytest.raises(RanksError, match=r"rank 1 of 2 did not meet the others at 127.0.0.1:1"):
        Ranks.meet(place, device="cpu", deadline_s=1.0)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_micro_batch_counts_once_and_all_have_as_many(size: int, num_parts: int) -> None:
    tokens = [7 * (i % 3) + i + 1 for i in range(num_parts)]
    dealt = [Ranks(rank, size).deal(tokens) for rank in range(size)]
    assert len({len(work) for work in dealt}) == 1
    counted = [index for work in dealt for index, counts in work if counts]
    assert sorted(counted) == list(range(num_parts))
    # Those computed at once are of like size: none is larger than one that is computed before.
    rounds = [[tokens[index] for index, _ in at_once] for at_once in zip(*dealt, strict=True)]
    assert all(min(a) >= max(b) for a, b in itertools.pairwise(rounds))
