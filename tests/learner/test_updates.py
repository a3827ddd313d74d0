from pathlib import Path
from typing import Any

import pytest

from configs.schema import LearnerSection
from learner.trainer import Trainer
from rollout.model import load_model
from tests.learner.batches import make_batch, sampled_group
from tests.models import tiny_qwen3


def test_what_is_told_of_several_updates(tmp_path: Path) -> None:
    path = tiny_qwen3(tmp_path / "model")
    sampler = load_model(path, "float32")
    groups = [
        sampled_group(sampler, seed=1, shift=0.3),
        sampled_group(sampler, seed=2, shift=0.3, rewards=(1.0, 0.0, 1.0, 0.0, 1.0)),
    ]

    def told(*chosen: int, **section: Any) -> dict[str, float]:
        # The weights stay, so that it does not matter which update comes first.
        trainer = Trainer(
            model_path=path,
            dtype="float32",
            section=LearnerSection(lr=1e-12, **section),
            temperature=1.0,
            publisher=None,
        )
        return trainer.train(make_batch([groups[index] for index in chosen])).metrics

    first, second = told(0), told(1)
    once, both = told(0, 1), told(0, 1, updates_per_batch=2)
    assert first["perf/trained_tokens"] < second["perf/trained_tokens"]
    for key in ("loss/total", "loss/policy", "optim/grad_norm"):
        assert first[key] != pytest.approx(second[key], rel=1e-2)
        assert both[key] == pytest.approx((first[key] + second[key]) / 2, rel=1e-4), key
    # What is of tokens is a mean over all of them, and the largest is that of any.
    names = [key for key in once if key.startswith(("kl/", "lag/", "loss/clip", "loss/mask"))]
    for key in ("loss/entropy", "loss/ess", "perf/trained_tokens", *names):
        assert both[key] == pytest.approx(once[key], rel=1e-4), key
    assert first["kl/engine_max"] != pytest.approx(second["kl/engine_max"], rel=1e-2)
