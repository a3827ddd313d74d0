from typing import get_args, get_type_hints

import pytest

from configs.load import ConfigError, load
from configs.loss import LossSection
from learner.advantage import ADVANTAGES
from learner.loss import AGGREGATIONS, DIVERGENCES
from learner.ratio import LEVELS


def loss(*settings: str) -> LossSection:
    return load([f"learner.loss.{setting}" for setting in settings]).learner.loss


def test_default_is_grpo_clipped_against_the_sampler_token_by_token() -> None:
    default = loss()
    assert (default.advantage, default.correction, default.level) == ("grpo", "clip", "token")
    assert (default.clip_low, default.clip_high, default.aggregation) == (0.2, 0.2, "token")
    assert (default.kl_coef, default.entropy_coef, default.overlong) == (0.0, 0.0, "keep")


@pytest.mark.parametrize(
    ("setting", "known"),
    [
        ("advantage", ADVANTAGES),
        ("level", LEVELS),
        ("aggregation", AGGREGATIONS),
        ("kl_estimator", DIVERGENCES),
    ],
)
def test_every_name_of_the_config_has_its_function(setting: str, known: dict) -> None:
    assert set(get_args(get_type_hints(LossSection)[setting])) == set(known)


@pytest.mark.parametrize(
    "settings",
    [
        ["level=sequence", "clip_low=3e-4", "clip_high=4e-4"],
        ["correction=tis", "level=sequence", "tis_cap=5"],
        ["correction=icepop", "level=geometric", "icepop_low=0.99", "icepop_high=1.01"],
        ["correction=decoupled", "clip_low=0.1", "decoupled_cap=2"],
        ["correction=vespo", "level=sequence", "vespo_k_neg=1"],
        ["aggregation=constant", "constant_tokens=512"],
        ["kl_coef=0.01", "kl_estimator=k2"],
        ["overlong=penalize", "overlong_start=200", "overlong_end=256"],
    ],
)
def test_what_goes_together_loads(settings: list[str]) -> None:
    loss(*settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["correction=ppo"],
            ["learner.loss.correction='ppo' must be one of clip | tis | icepop", "did you mean"],
        ),
        (
            ["correction=dppo", "level=sequence"],
            ['level="sequence" has no meaning with correction="dppo"', 'set level="token"'],
        ),
        (
            ["level=geometric"],
            ['with correction="clip"', 'level="token" or level="sequence"'],
        ),
        (["correction=vespo"], ['level="token"', 'set level="sequence"']),
        (
            ["dppo_delta=0.1"],
            [
                'learner.loss: dppo_delta=0.1 does nothing with correction="clip"',
                'correction="dppo"',
            ],
        ),
        (
            ["correction=tis", "clip_high=0.28"],
            ["clip_high=0.28 does nothing", 'correction="clip" or correction="decoupled"'],
        ),
        (["proximal=recomputed"], ["proximal=recomputed does nothing", 'correction="decoupled"']),
        (
            ["correction=icepop", "icepop_low=5"],
            ["icepop_low=5 is not below icepop_high=5", "lower"],
        ),
        (["aggregation=constant"], ["needs constant_tokens", "rollout.max_context_tokens"]),
        (["constant_tokens=9"], ["constant_tokens=9 does nothing", 'aggregation="constant"']),
        (["kl_estimator=k1"], ["does nothing with kl_coef=0", "raise kl_coef"]),
        (["overlong_start=9"], ["overlong_start=9", 'do nothing with overlong="keep"']),
        (["overlong=penalize"], ["needs overlong_start=0 below overlong_end=1", "set both"]),
        (
            ["overlong=penalize", "overlong_start=9", "overlong_end=9"],
            ["needs overlong_start=9 below overlong_end=9"],
        ),
        (
            ["overlong=penalize", "overlong_end=9", "advantage=maxrl"],
            ["below 0", 'overlong="mask"'],
        ),
        (
            ["overlong=penalize", "overlong_start=9999", "overlong_end=99999"],
            ["learner.loss.overlong_start=9999 is never reached", "max_context_tokens", "lower it"],
        ),
        (["clip_low=1.5"], ["learner.loss.clip_low=1.5 must be a number from 0 to 1"]),
    ],
)
def test_what_contradicts_is_refused_with_a_cure(settings: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        loss(*settings)
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_centre_at_which_every_update_begins_is_refused() -> None:
    chosen = ["learner.loss.correction=decoupled", "learner.loss.proximal=recomputed"]
    with pytest.raises(ConfigError, match=r"learner: .*updates_per_batch=1 would never clip"):
        load(chosen)
    load([*chosen, "learner.updates_per_batch=2"])


def test_more_updates_than_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"updates_per_batch=5 .*groups_per_step=4: lower it"):
        load(["learner.updates_per_batch=5", "rollout.groups_per_step=4"])
