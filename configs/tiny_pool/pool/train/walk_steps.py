"""Walk the steps, find the node.

Compiled from a solution: its variables are the hidden state, its steps the tools.
"""

import json
from random import Random
from typing import Any

import msgspec

from envpool import stepwise
from envpool.env import Oracle


def solve(start: int, steps: int, after: dict[str, int]) -> int:
    """The node after that many steps."""
    node = start
    for _ in range(steps):
        node = after[str(node)]
    return node



from random import Random
from typing import Any

def generate(rng: Random, level: int) -> dict[str, Any]:
    """A ring of nodes, on which one may walk for ever."""
    nodes = rng.sample(range(1, 100), rng.randint(8, 12))
    ring = zip(nodes, [*nodes[1:], nodes[0]], strict=True)
    return {'start': nodes[0], 'steps': rng.randint(3, 6) + 4 * level, 'after': {str(one): other for one, other in ring}}


STATEMENT = (
    'Walk the steps, find the node.'
)


class WalkStepsInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is hidden: the arguments of the solution."""

    start: int
    steps: int
    after: dict[str, int]


class WalkSteps(stepwise.Stepwise):
    """Walk the steps, find the node."""

    Config = WalkStepsInput
    Answer = int

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return generate(rng, level)

    def setup(self, config: WalkStepsInput) -> None:
        self._given = msgspec.structs.asdict(config)
        s = self.begin(self._given)
        s.node = s.start

    def statement(self) -> str:
        return STATEMENT

    def reference(self) -> int:
        return stepwise.result_of(solve, self._given)

    @stepwise.operation
    def read_steps(self) -> int:
        """Tell steps."""
        s = self._now
        return s.steps

    @stepwise.operation
    def set_node(self) -> dict[str, Any]:
        """Set node to after[str(node)]."""
        s = self._now
        s.node = s.after[str(s.node)]
        return stepwise.shown(s, 'node')

    @stepwise.operation
    def read_node(self) -> Any:
        """Tell node, as it is now."""
        s = self._now
        return stepwise.plain(s.node)

    def oracle(self) -> Oracle:
        steps = int((yield ('read_steps', {})))
        for ignored in range(steps):
            yield ('set_node', {})
        yield ('done', {'answer': json.loads((yield ('read_node', {})))})
        return
