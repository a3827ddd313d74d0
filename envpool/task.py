"""What is asked: `Task`, its content hash, and the split that the hash decides.

A configuration is JSON. Its hash names the task, and decides whether it may be trained on, so that no
run, seed or stage (warm start, RL) trains on one of the evaluation split. Evaluation draws from that
split, except of what a run never trains on (`rollout/untouched.py`).
"""

import hashlib
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

# One configuration in EVAL_MODULUS is for evaluation.
EVAL_MODULUS = 8

# A JSON object: the hidden state of an environment at reset.
Config = dict[str, Any]

# Reserved in every configuration: how the task is varied (envpool/variation.py).
VARIATION = "variation"

_encode_sorted = msgspec.json.Encoder(order="sorted").encode


class Split(StrEnum):
    """Which side of the split a configuration falls on."""

    TRAIN = "train"
    """May be trained on, and evaluated on where a run trains on no environment of that id."""
    EVAL = "eval"
    """Only ever evaluated on."""


class PoolKey(NamedTuple):
    """Which pool: two versions of one name are two pools, whose groups and slots are told apart."""

    name: str
    version: str
    """Content hash of the code that serves it."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration of one environment of one version of a pool."""

    pool: str
    pool_version: str
    env: str
    config: Config
    seed: int
    """Seeds the environment, and with the member number the sampling of each member."""

    @property
    def id(self) -> str:
        return f"{self.pool}/{self.env}/{config_digest(self.env, self.config)[:16]}"

    @property
    def pool_key(self) -> PoolKey:
        return PoolKey(self.pool, self.pool_version)

    @property
    def split(self) -> Split:
        return config_split(self.env, self.config)


def config_digest(env: str, config: Config) -> str:
    """SHA-256 (hex) of the environment's id and its configuration as canonical JSON."""
    return hashlib.sha256(_encode_sorted({"env": env, "config": config})).hexdigest()


def config_split(env: str, config: Config) -> Split:
    """`EVAL` for the configurations whose content hash is 0 modulo `EVAL_MODULUS`.

    A varied task is on the side of the plain one: who saw either knows the other's answer.
    """
    if VARIATION in config:
        config = {key: value for key, value in config.items() if key != VARIATION}
    is_eval = int(config_digest(env, config), 16) % EVAL_MODULUS == 0
    return Split.EVAL if is_eval else Split.TRAIN
