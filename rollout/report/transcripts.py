"""Which evaluation episodes a report shows, and how they read: the same tasks before and after training.

What an environment or a policy wrote is cut to a readable length, and marked where it was cut. It is
not made safe here: the page escapes all of it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rollout.evaluate import Place
from rollout.report.digest import Verdict, Verdicts, episodes
from rollout.report.lines import RowLine
from rollout.types import StopReason

# Episodes shown before, and as many after.
SHOWN = 5

RULE = (
    "Chosen by rule, not by hand: tasks whose verdict changed come first, in either direction, then "
    "tasks whose calls changed, then the others; within these, sampled before greedy (both evaluations "
    "draw the same random numbers, so that only the weights differ), environments not shown yet before "
    "others, and then in the order in which the evaluation sets were drawn."
)

# Characters of one text, and turns of one episode, that a reader still takes in.
_MAX_TEXT = 600
_MAX_TURNS = 20

_STOPS = {
    StopReason.ANSWERED: "gave an answer",
    StopReason.MAX_TURNS: "ran out of turns",
    StopReason.MAX_TOKENS: "ran out of tokens in a reply",
    StopReason.CONTEXT_FULL: "ran out of context",
    StopReason.CANCELLED: "was cancelled",
}


@dataclass(slots=True, kw_only=True, frozen=True)
class Changes:
    """Tasks played before and after, by what became of their verdict."""

    gained: int
    """A higher reward after."""
    lost: int
    same: int

    @property
    def p_value(self) -> float:
        """Two-sided sign test: how likely chance alone makes a change as one-sided as this."""
        number = self.gained + self.lost
        tail = sum(math.comb(number, k) for k in range(min(self.gained, self.lost) + 1))
        return min(1.0, 2 * tail / 2**number)


@dataclass(slots=True, kw_only=True, frozen=True)
class ShownTurn:
    """A call as a person would write it, and what the environment answered."""

    call: str
    observation: str
    is_bad_call: bool


@dataclass(slots=True, kw_only=True, frozen=True)
class Transcript:
    """One evaluation episode in readable form."""

    turns: list[ShownTurn]
    num_turns_left_out: int
    verdict: str
    kind: str
    """`right`, `wrong`, `part` or `fault`, for the colour."""
    end: str


@dataclass(slots=True, kw_only=True, frozen=True)
class Shown:
    """A task and how it was played; None where the run has no such episode."""

    place: Place
    env: str
    task_id: str
    prompt: str
    hidden: str
    """The configuration, which the policy does not see."""
    before: Transcript | None
    after: Transcript | None


def changes(before: Verdicts, after: Verdicts) -> dict[tuple[str, str], Changes]:
    """By set and mode, over the tasks whose first sample has a verdict on both sides.

    A task counts once: its samples are not independent of each other.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    for place, was in before.items():
        now = after.get(place)
        if place.sample or now is None or was.task_id != now.task_id:
            continue
        if was.reward is None or now.reward is None:
            continue
        change = "same" if was.reward == now.reward else "lost"
        change = "gained" if now.reward > was.reward else change
        counts.setdefault((place.set, place.mode), Counter())[change] += 1
    return {
        key: Changes(gained=c["gained"], lost=c["lost"], same=c["same"])
        for key, c in counts.items()
    }


def choose(before: Verdicts, after: Verdicts, sets: Sequence[str]) -> list[Place]:
    """At most `SHOWN` places, by `RULE`; `sets` gives the order of the sets."""
    order = {name: position for position, name in enumerate(sets)}

    def standing(place: Place) -> tuple[int, int, int, int]:
        is_greedy = int(place.mode != "sampled")
        known = order.get(place.set, len(order))
        return _rank(before.get(place), after.get(place)), is_greedy, known, place.number

    left = sorted((one for one in {**before, **after} if not one.sample), key=standing)
    chosen: list[Place] = []
    shown: Counter[str] = Counter()

    def priority(place: Place) -> tuple[int, int, int]:
        rank, is_greedy, *_ = standing(place)
        return rank, is_greedy, shown[_env(place)]

    def _env(place: Place) -> str:
        verdict = before.get(place) or after[place]
        return verdict.env

    while left and len(chosen) < SHOWN:
        best = min(left, key=priority)  # the first of equals: `left` is in order
        left.remove(best)
        chosen.append(best)
        shown[_env(best)] += 1
    return chosen


def _rank(before: Verdict | None, after: Verdict | None) -> int:
    """0: another verdict, 1: other calls, 2: the same, 3: played once only."""
    if before is None or after is None or before.task_id != after.task_id:
        return 3
    if before.reward != after.reward:
        return 0
    return 1 if before.actions != after.actions else 2


def transcripts(run_dir: Path, places: Sequence[Place]) -> list[Shown]:
    """The chosen episodes in readable form."""
    before = episodes(run_dir, "before", set(places))
    after = episodes(run_dir, "after", set(places))
    shown = []
    for place in places:
        row = before.get(place) or after[place]
        later = after.get(place)
        is_same = later is not None and later.task_id == row.task_id
        shown.append(
            Shown(
                place=place,
                env=row.env,
                task_id=row.task_id,
                prompt=_cut(row.prompt),
                hidden=_cut(bytes(row.config).decode()),
                before=_episode(before.get(place)),
                after=_episode(later if is_same else None),
            )
        )
    return shown


def _episode(row: RowLine | None) -> Transcript | None:
    if row is None:
        return None
    verdict, kind = _verdict(row)
    end = _STOPS.get(row.stop, str(row.stop))
    if row.error:
        end = f"{row.stop}: {_cut(row.error.strip().rsplit(chr(10), 1)[-1])}"
    return Transcript(
        turns=[
            ShownTurn(
                call=_cut(_call(turn.action)),
                observation=_cut(turn.observation),
                is_bad_call=turn.is_bad_call,
            )
            for turn in row.turns[:_MAX_TURNS]
        ],
        num_turns_left_out=max(0, len(row.turns) - _MAX_TURNS),
        verdict=verdict,
        kind=kind,
        end=end,
    )


def _verdict(row: RowLine) -> tuple[str, str]:
    match row.reward:
        case None:
            return "no verdict", "fault"
        case 1.0:
            return "right", "right"
        case 0.0:
            return "wrong", "wrong"
        case reward:
            return f"reward {reward:g}", "part"


def _call(action: str) -> str:
    """`name(argument=value)` where the action is a call at all, else the text itself."""
    try:
        call = msgspec.json.decode(action)
        arguments: dict[str, Any] = call.get("arguments", {})
        words = [f"{name}={_json(value)}" for name, value in arguments.items()]
        return f"{call['name']}({', '.join(words)})"
    except (msgspec.MsgspecError, RecursionError, AttributeError, KeyError, TypeError):
        return action


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _cut(text: str) -> str:
    left_out = len(text) - _MAX_TEXT
    return text if left_out <= 0 else f"{text[:_MAX_TEXT]} [... {left_out:,} more characters]"
