"""One rollout as a person reads it: what was asked, each call and its answer, what became of it.

Everything an environment or a policy wrote goes through `printable`, and to rich as `Text`, which
takes no markup.
"""

import msgspec
from rich.console import Console
from rich.text import Text

from rollout.evaluate import place
from rollout.files import RolloutRow
from rollout.printable import printable
from rollout.types import Turn

# Longer texts are cut: the file has them whole.
MAX_CHARS = 4000
MAX_CONFIG_CHARS = 300

# A terminal narrower than this is left to break lines as it likes.
_MIN_WIDTH = 20

_FAULT, _BAD, _GOOD, _QUIET = "bold red", "red", "green", "dim"


class _Call(msgspec.Struct, frozen=True):
    name: str
    arguments: dict[str, object] = {}


def write(console: Console, row: RolloutRow) -> None:
    """Print one rollout."""
    console.print(_headline(row))
    _block(console, _origin(row), 2, _QUIET)
    _block(console, _measures(row), 2, _QUIET)
    config = msgspec.json.encode(row.config).decode()
    _block(console, f"config {config}", 2, _QUIET, MAX_CONFIG_CHARS)
    if row.prompt:
        _block(console, row.prompt, 2, "italic")
    for turn in row.turns:
        _write_turn(console, turn)
    if row.error:
        _block(console, row.error.rstrip(), 2, _FAULT if row.stop.is_fault else "")
    console.print()


def _headline(row: RolloutRow) -> Text:
    reward = "no reward" if row.reward is None else f"reward {row.reward:g}"
    color = _BAD if row.stop.is_fault else _GOOD if row.reward else ""
    name = printable(f"{row.group_id}/{row.member} {row.env}")
    return Text.assemble((name, "bold"), "  ", (reward, color), "  ", (row.stop, color), _end(row))


def _end(row: RolloutRow) -> str:
    """What became of its group."""
    if row.state is None:
        where = place(row.group_id)
        return printable(f"  evaluation: {where.set}, {where.mode}")
    if row.step is None:
        return f"  group {row.state}"
    lag = "left out" if row.lag is None else f"lag {row.lag}"
    return f"  group {row.state} at step {row.step}, {lag}"


def _origin(row: RolloutRow) -> str:
    parts = [f"task {row.task_id}", f"seed {row.seed}", f"member {row.member} of {row.group_size}"]
    if row.attempt:
        parts.append(f"attempt {row.attempt + 1}")
    return ", ".join([*parts, f"pool {row.pool} {row.pool_version}"])


def _measures(row: RolloutRow) -> str:
    # A fault leaves no tokens to train on; its turns say what was sampled all the same.
    versions = row.versions or sorted({turn.oldest_version for turn in row.turns})
    sampled = sum(turn.num_reply_tokens for turn in row.turns)
    total = f" of {row.num_tokens}" if row.num_tokens else ""
    turns = f"{len(row.turns)} turn{'' if len(row.turns) == 1 else 's'}"
    parts = [turns, f"{sampled} sampled tokens{total}", f"{row.wall_s:.2f} s"]
    if versions:
        parts.append(f"weights v{', v'.join(map(str, versions))}")
    if row.actor:
        parts.append(f"on {row.actor}")
    return ", ".join(parts)


def _write_turn(console: Console, turn: Turn) -> None:
    call, blocks = _readable(turn.action)
    mark = "BAD CALL " if turn.is_bad_call else ""
    times = (
        f"  [{turn.num_reply_tokens} tokens, v{turn.oldest_version}, "
        f"generated {turn.generate_s:.3f} s, env {turn.env_s:.3f} s]"
    )
    head = Text.assemble((mark, _BAD), (_clean(call), "bold"), (times, _QUIET))
    _print(console, f"{turn.index + 1:>4}  ", head)
    for name, text in blocks.items():
        _block(console, f"{name}:", 6, "bold")
        _block(console, text, 8)
    _block(console, f"-> {turn.observation}", 6, _BAD if turn.is_bad_call else "")


def _readable(action: str) -> tuple[str, dict[str, str]]:
    """A call as `name(key=value)`, and its arguments of several lines apart; other text as it is."""
    try:
        call = msgspec.json.decode(action, type=_Call)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return action or "(empty)", {}
    blocks = {
        key: value
        for key, value in call.arguments.items()
        if isinstance(value, str) and "\n" in value
    }
    words = [
        f"{key}=..." if key in blocks else f"{key}={msgspec.json.encode(value).decode()}"
        for key, value in call.arguments.items()
    ]
    return f"{call.name}({', '.join(words)})", blocks


def _clean(text: str, max_chars: int = MAX_CHARS) -> str:
    cut = f" ... ({len(text) - max_chars} more characters)" if len(text) > max_chars else ""
    return printable(text[:max_chars]) + cut


def _block(
    console: Console, text: str, indent: int, style: str = "", max_chars: int = MAX_CHARS
) -> None:
    """Print a text of any number of lines, each `indent` columns in."""
    for line in _clean(text, max_chars).split("\n"):
        _print(console, " " * indent, Text(line, style=style))


def _print(console: Console, before: str, line: Text) -> None:
    """Print a line after `before`; on a terminal it is folded and stays below its beginning."""
    room = console.width - len(before)
    if not console.is_terminal or room < _MIN_WIDTH:
        console.print(Text(before) + line)
        return
    for piece in line.wrap(console, room):
        piece.rstrip()
        console.print(Text(before) + piece)
        before = " " * len(before)
