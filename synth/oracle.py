"""Plays an environment's oracle against it: in another process, with the statement and the observations.

    process with the oracle --call--> here --action--> session of the environment
                            <--observation--

What wins here wins by what the tools show, as the oracle's process never had a configuration.
"""

from collections.abc import Sequence
from typing import Any

from envpool.task import Config
from envpool.tools import call_text
from synth.court import INSIDE, Desk, JobFault, Room, step
from synth.records import Move

# An oracle that makes more calls does not end.
MAX_CALLS = 2048


class OracleError(Exception):
    """The oracle did not win as it has to; `reason` is what reports count."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


async def play(room: Room, desk: Desk, env: str, config: Config, seed: int) -> list[Move]:
    """The calls with which the oracle wins, `done` last. Raises OracleError and JobFault."""
    life = await room.open(env, config, seed)
    moves: list[Move] = []
    try:
        told = await desk.run(f"{INSIDE}.candidate:oracle_begin", {"statement": life.prompt})
        while True:
            name, arguments = _call(told, moves)
            result = await step(life, call_text(name, arguments), room.timeout_s)
            moves.append(Move(name=name, arguments=arguments, observation=result.observation))
            if result.terminated or result.truncated:
                if result.reward != 1.0:
                    given = arguments.get("answer")
                    raise OracleError("oracle loses", f"it answered {given!r} on {config!r}")
                return moves
            if len(moves) == MAX_CALLS:
                raise OracleError("oracle does not end", f"it made {MAX_CALLS} calls")
            told = await desk.run(
                f"{INSIDE}.candidate:oracle_next", {"observation": result.observation}
            )
    except JobFault as fault:
        last = f" after {moves[-1].name} {moves[-1].arguments}" if moves else ""
        raise JobFault(fault.reason, f"{fault.detail}{last}") from fault
    finally:
        await life.close()


async def replay(room: Room, env: str, config: Config, moves: Sequence[Move], seed: int) -> bool:
    """Whether these calls are answered the same again, and win. Raises JobFault."""
    life = await room.open(env, config, seed)
    try:
        reward = 0.0
        for move in moves:
            action = call_text(move.name, move.arguments)
            result = await step(life, action, room.timeout_s)
            if result.observation != move.observation:
                return False
            reward = result.reward
        return reward == 1.0
    finally:
        await life.close()


def shortened(moves: Sequence[Move], changed: Sequence[bool]) -> list[Move]:
    """Without calls whose answer is known: made before, and nothing has changed since.

    `changed`: which calls changed hidden state.
    """
    kept: list[Move] = []
    known: set[str] = set()
    for move, is_change in zip(moves, changed, strict=True):
        key = call_text(move.name, move.arguments)
        if is_change:
            known.clear()
        elif key in known:
            continue
        else:
            known.add(key)
        kept.append(move)
    return kept


def _call(told: Any, moves: Sequence[Move]) -> tuple[str, dict[str, Any]]:
    """The call that an oracle's process has told of. Raises OracleError."""
    told = told if isinstance(told, dict) else {}
    after = f" after {len(moves)} calls"
    if "reached" in told:
        names = ", ".join(map(str, told["reached"]))
        raise OracleError(
            "oracle reaches inside",
            f"it looks at self.{names}: an oracle has self.statement() only",
        )
    if "raised" in told:
        raise OracleError("oracle fails", f"it raised {told['raised']}{after}")
    if "end" in told:
        raise OracleError("oracle does not answer", f"it ended{after} without done")
    name, arguments = told.get("name"), told.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise OracleError("oracle fails", f"it yielded no call{after}: (name, arguments) is one")
    return name, arguments
