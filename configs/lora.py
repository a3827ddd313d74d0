"""The settings of adapters, which are trained in place of a model's weights: `learner/lora.py`."""

import msgspec

from configs.ranges import Count, Whole

_ALPHA = 32


class LoraSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the config file; unknown keys are refused."""

    rank: Whole = 0
    """Train adapters of this rank (LoRA) and leave the model's own weights alone; more can learn more and
    takes more memory; 0: train all weights."""
    alpha: Count = _ALPHA
    """An adapter adds alpha / rank times the product of its matrices; more makes a step change more."""
    targets: list[str] = []
    """Names of the linear layers that get one, such as `q_proj`; empty: all but the output head."""

    def __post_init__(self) -> None:
        if not self.rank and (self.alpha != _ALPHA or self.targets):
            raise ValueError(
                f"alpha={self.alpha} and targets={self.targets} do nothing with rank=0, which trains all "
                "weights: set rank, or leave them out"
            )
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets={self.targets} names a layer twice: name each once")
