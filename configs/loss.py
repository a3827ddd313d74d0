"""The settings of the learner's loss, and which of them go together.

Formulas and sources: `learner/{advantage,ratio,correction,loss}.py`.
"""

from typing import Literal

import msgspec

from configs.ranges import Count, Fraction, NonNegative, Positive, Whole

# The levels at which a correction's ratio means something, its usual one first.
_LEVELS = {
    "clip": ("token", "sequence"),
    "tis": ("token", "sequence", "geometric"),
    "icepop": ("token", "sequence", "geometric"),
    "dppo": ("token",),
    "cispo": ("token",),
    "decoupled": ("token",),
    "m2po": ("token",),
    "vespo": ("sequence",),
    "none": ("token",),
}

# Which corrections read a setting; the others would ignore it.
_READ_BY = {
    "clip_low": ("clip", "decoupled"),
    "clip_high": ("clip", "decoupled"),
    "tis_cap": ("tis",),
    "icepop_low": ("icepop",),
    "icepop_high": ("icepop",),
    "dppo_delta": ("dppo",),
    "dppo_cap": ("dppo",),
    "cispo_low": ("cispo",),
    "cispo_high": ("cispo",),
    "proximal": ("decoupled",),
    "decoupled_cap": ("decoupled",),
    "m2po_budget": ("m2po",),
    "vespo_k_pos": ("vespo",),
    "vespo_lambda_pos": ("vespo",),
    "vespo_k_neg": ("vespo",),
    "vespo_lambda_neg": ("vespo",),
}


class LossSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the config file; unknown keys are refused."""

    advantage: Literal["grpo", "grpo_no_std", "rloo", "maxrl"] = "grpo"
    """How a group's rewards become advantages; maxrl weighs rare successes up."""
    correction: Literal[
        "clip", "tis", "icepop", "dppo", "cispo", "decoupled", "m2po", "vespo", "none"
    ] = "clip"
    """What is done about tokens that other weights sampled."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """Whose ratio a token has: its own, its row's product (with clip its mean: GSPO), its row's mean."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """What weighs the same: trained tokens, rollouts, or tokens by `constant_tokens` whatever their number."""
    constant_tokens: Whole = 0
    """With aggregation=constant: tokens a rollout counts for, such as the most it may sample."""
    clip_low: Fraction = 0.2
    """The ratio to the sampler's log-probs is clipped below at 1 - clip_low; GSPO: 3e-4."""
    clip_high: NonNegative = 0.2
    """And above at 1 + clip_high; more lets rare tokens grow; GSPO: 4e-4."""
    tis_cap: Positive = 2.0
    """With tis: larger weights are cut to this; more is less biased and noisier."""
    icepop_low: NonNegative = 0.5
    """With icepop: tokens of a lower ratio are left out."""
    icepop_high: Positive = 5.0
    """And of a higher one."""
    dppo_delta: Fraction = 0.2
    """With dppo: tokens are left out whose probability moved by more than this the way they are pushed."""
    dppo_cap: Positive = 10.0
    """And larger weights are cut to this."""
    cispo_low: Fraction = 1.0
    """With cispo: weights are at least 1 - cispo_low."""
    cispo_high: NonNegative = 4.0
    """And at most 1 + cispo_high."""
    proximal: Literal["interpolated", "recomputed"] = "interpolated"
    """With decoupled: the clip's centre lies between sampler and learner, or is the batch's first weights."""
    decoupled_cap: Positive = 5.0
    """With decoupled: tokens are left out where the centre is further from the sampler than this ratio."""
    m2po_budget: Positive = 0.04
    """With m2po: the mean squared log ratio that may stay in a batch; it takes a pass more."""
    vespo_k_pos: NonNegative = 2.0
    """With vespo: a row's weight is W^k e^(lambda (1 - W)); more discounts rows that became rarer."""
    vespo_lambda_pos: NonNegative = 3.0
    """More discounts rows that became likelier."""
    vespo_k_neg: NonNegative = 3.0
    """The same where the advantage is negative."""
    vespo_lambda_neg: NonNegative = 2.0
    """And this."""
    kl_coef: NonNegative = 0.0
    """Pull towards the initial model; above 0 it is loaded a second time, frozen, unless adapters are trained."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of that divergence, from the sampled tokens."""
    entropy_coef: NonNegative = 0.0
    """Push towards more random replies."""
    overlong: Literal["keep", "mask", "penalize"] = "keep"
    """Rollouts cut off by a budget: trained on as they were graded, or left out; or the long lose reward."""
    overlong_start: Whole = 0
    """With penalize: tokens of a row, prompt included, from which its rollout loses reward."""
    overlong_end: Count = 1
    """And by which it has lost 1."""

    def __post_init__(self) -> None:
        self._check_correction()
        self._check_aggregation()
        if self.kl_estimator != "k3" and not self.kl_coef:
            raise ValueError(
                f'kl_estimator="{self.kl_estimator}" does nothing with kl_coef=0: raise kl_coef, or '
                "leave it out"
            )
        self._check_overlong()

    def _check_correction(self) -> None:
        levels = _LEVELS[self.correction]
        if self.level not in levels:
            cure = " or ".join(f'level="{level}"' for level in levels)
            raise ValueError(
                f'level="{self.level}" has no meaning with correction="{self.correction}": set {cure}'
            )
        defaults = {field.name: field.default for field in msgspec.structs.fields(type(self))}
        for name, readers in _READ_BY.items():
            value = getattr(self, name)
            if value != defaults[name] and self.correction not in readers:
                cure = " or ".join(f'correction="{reader}"' for reader in readers)
                raise ValueError(
                    f'{name}={value} does nothing with correction="{self.correction}": leave it out, '
                    f"or set {cure}"
                )
        if self.icepop_low >= self.icepop_high:
            raise ValueError(
                f"icepop_low={self.icepop_low:g} is not below icepop_high={self.icepop_high:g}, so "
                "that every token is left out: lower icepop_low"
            )

    def _check_aggregation(self) -> None:
        if self.aggregation == "constant" and not self.constant_tokens:
            raise ValueError(
                'aggregation="constant" needs constant_tokens: the most a rollout may sample, such as '
                "rollout.max_context_tokens"
            )
        if self.constant_tokens and self.aggregation != "constant":
            raise ValueError(
                f"constant_tokens={self.constant_tokens} does nothing with "
                f'aggregation="{self.aggregation}": leave it out, or set aggregation="constant"'
            )

    def _check_overlong(self) -> None:
        is_given = self.overlong_start != 0 or self.overlong_end != 1
        if self.overlong != "penalize":
            if is_given:
                raise ValueError(
                    f"overlong_start={self.overlong_start} and overlong_end={self.overlong_end} do "
                    f'nothing with overlong="{self.overlong}": leave them out, or set '
                    'overlong="penalize"'
                )
            return
        if not is_given or self.overlong_start >= self.overlong_end:
            raise ValueError(
                f'overlong="penalize" needs overlong_start={self.overlong_start} below '
                f"overlong_end={self.overlong_end}: set both, the latter to rollout.max_context_tokens "
                "or less"
            )
        if self.advantage == "maxrl":
            raise ValueError(
                'overlong="penalize" makes rewards below 0, of which advantage="maxrl" knows no '
                'meaning: set overlong="mask", or another advantage'
            )
