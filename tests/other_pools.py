"""Pools to add to a run: small parts of the shipped one, each a version of its own."""

from random import Random
from typing import Any

from envpool.env import ToolEnv
from envpool.envs import basics
from envpool.envs.sum_list import SumList

one: dict[str, type[ToolEnv]] = {"sum_list": basics["sum_list"]}
two: dict[str, type[ToolEnv]] = {"find_max": basics["find_max"], "sum_list": basics["sum_list"]}
# `price_total` is trained on in no recipe here.
apart: dict[str, type[ToolEnv]] = {"price_total": basics["price_total"]}
mixed: dict[str, type[ToolEnv]] = {**apart, **one}


class Constant(SumList):
    """Has one configuration, which is for evaluation: there is nothing to train on."""

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return super().sample(Random(25), level)


constant: dict[str, type[ToolEnv]] = {"constant": Constant}
