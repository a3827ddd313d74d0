"""Plays an environment's oracle against it: in another process, with the statement and the observations.

    process with the oracle --call--> here --action--> session of the environment
                            <--observation--

What wins here wins by what the tools show, as the oracle's process never had a configuration.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from envpool.task import Config
from envpool.tools import call_text
from synth.court import INSIDE, Desk, JobFault, Room, step, steps
from synth.records import Move

# An oracle that makes more calls does not end.
MAX_CALLS = 1024


class OracleError(Exception):
    """The oracle did not win as it has to; `reason` is what reports count."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Played(NamedTuple):
    """An episode that the oracle has won."""

    prompt: str
    moves: list[Move]
    """`done` last."""


async def play(room: Room, desk: Desk, env: str, config: Config, seed: int) -> Played:
    """The calls with which the oracle wins. Raises OracleError and JobFault."""
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
                return Played(life.prompt, moves)
            if len(moves) == MAX_CALLS:
                raise OracleError("oracle does not end", f"it made {MAX_CALLS} calls")
            arguments = {"observation": result.observation}
            told = await desk.run(f"{INSIDE}.candidate:oracle_next", arguments)
    except JobFault as fault:
        last = f" after {moves[-1].name} {moves[-1].arguments}" if moves else ""
        raise JobFault(fault.reason, f"{fault.detail}{last}") from fault
    finally:
        await life.close()


async def decides_again(desk: Desk, played: Played) -> bool:
    """Whether the oracle makes the same calls where it is told and answered the same. Raises JobFault.

    Once more it is asked all at once: it has no choice but to follow what it is answered.
    """
    observations = [move.observation for move in played.moves[:-1]]
    arguments = {"statement": played.prompt, "observations": observations}
    told = await desk.run(f"{INSIDE}.candidate:oracle_follow", arguments)
    calls = [{"name": move.name, "arguments": move.arguments} for move in played.moves]
    return told == calls


async def replay(
    room: Room, env: str, config: Config, prompt: str, moves: Sequence[Move], seed: int
) -> bool:
    """Whether a new episode with these calls is told and answered the same, and won. Raises JobFault."""
    life = await room.open(env, config, seed)
    try:
        actions = [call_text(move.name, move.arguments) for move in moves]
        results = await steps(life, actions, room.timeout_s)
        shown = [result.observation for result in results]
        is_same = life.prompt == prompt and shown == [move.observation for move in moves]
        return is_same and results[-1].reward == 1.0
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
