"""Follow the pointers of a hidden linked list to its last node."""

from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from envpool.env import Oracle, ToolEnv, ToolInputError, tool
from envpool.envs.numbers import MAX_NUMBER, Number, draw_length

# What follows the last node.
END = -1


class Chain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Different nodes in the order of the walk."""

    nodes: Annotated[list[Number], Meta(min_length=1)]

    def __post_init__(self) -> None:
        if len(set(self.nodes)) < len(self.nodes):
            raise ValueError(f"nodes={self.nodes} repeats a node: the walk would not end")


class WalkList(ToolEnv):
    """Answer: the last node."""

    Config = Chain

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        # From 1, so that 0 is never the answer.
        return {"nodes": rng.sample(range(1, MAX_NUMBER + 1), draw_length(rng, level))}

    def setup(self, config: Chain) -> None:
        self._first = config.nodes[0]
        self._next = dict(zip(config.nodes, [*config.nodes[1:], END], strict=True))

    def statement(self) -> str:
        return "Find the last node."

    def reference(self) -> int:
        return next(node for node, after in self._next.items() if after == END)

    @tool
    def start(self) -> int:
        """The first node."""
        return self._first

    @tool
    def next(self, node: int) -> int:
        """The node after one, or -1 after the last.

        Args:
            node: A node of the list.
        """
        if node not in self._next:
            raise ToolInputError("no such node")
        return self._next[node]

    def oracle(self) -> Oracle:
        node = int((yield "start", {}))
        while (after := int((yield "next", {"node": node}))) != END:
            node = after
        yield "done", {"answer": node}
