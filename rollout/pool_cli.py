"""`python launch.py pool` and `control`: operations on a run that goes on, from a shell."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from configs.load import ConfigError, read
from envpool.folder import is_path
from rollout.printable import printable
from rollout.remote import RefusedError, Remote
from rollout.status import PoolInfo

EXIT_DONE, EXIT_REFUSED = 0, 1

# Options that take a word.
_WITH_WORD = ("--run", "--token", "--weight")
_SWITCHES = ("--json", "--trusted")


@dataclass(slots=True)
class Words:
    """The arguments of a command, by kind."""

    plain: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    switches: set[str] = field(default_factory=set)
    train: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "Words":
        """Raises ConfigError for an unknown option, and for one without its word."""
        words, rest = cls(), list(arguments)
        while rest:
            word = rest.pop(0)
            if word in _WITH_WORD:
                if not rest:
                    raise ConfigError(f"{word} needs a word after it")
                words.options[word] = rest.pop(0)
            elif word in _SWITCHES:
                words.switches.add(word)
            elif word == "--train":
                while rest and not rest[0].startswith("-") and "=" not in rest[0]:
                    words.train.append(rest.pop(0))
            elif word.startswith("-"):
                known = ", ".join([*_WITH_WORD, *_SWITCHES, "--train"])
                raise ConfigError(f"there is no option {word}: there are {known}")
            elif "=" in word:
                words.settings.append(word)
            else:
                words.plain.append(word)
        return words

    def remote(self) -> Remote:
        """The run that is meant. Raises ConfigError."""
        if "--run" not in self.options:
            raise ConfigError("which run? --run DIR, or --run URL")
        return Remote.find(self.options["--run"], self.options.get("--token", ""))

    def take(self, *names: str) -> list[str]:
        """The plain words, one for each name. Raises ConfigError for more or fewer."""
        if len(self.plain) != len(names):
            wanted = " ".join(names) or "nothing else"
            raise ConfigError(f"expected {wanted}, got {' '.join(self.plain) or 'nothing'}")
        return self.plain


Action = Callable[[Words], None]


def pool(arguments: Sequence[str]) -> int:
    """List and change the pools of a run. Raises ConfigError for a user's mistake."""
    actions: dict[str, Action] = {
        "list": _list,
        "add": lambda words: _add(words, replace=False),
        "replace": lambda words: _add(words, replace=True),
        "remove": _remove,
        "lift": _lift,
    }
    return _run("pool", arguments, actions)


def control(arguments: Sequence[str]) -> int:
    """Pause, resume, save and look at a run. Raises ConfigError for a user's mistake."""
    actions: dict[str, Action] = {
        "status": lambda words: _operate(words, "GET", "/status"),
        "pause": lambda words: _operate(words, "POST", "/pause"),
        "resume": lambda words: _operate(words, "POST", "/resume"),
        "checkpoint": lambda words: _operate(words, "POST", "/checkpoint"),
    }
    return _run("control", arguments, actions)


def _run(command: str, arguments: Sequence[str], actions: dict[str, Action]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name not in actions:
        raise ConfigError(f"{command} {name!r} is not known: use {command} {' | '.join(actions)}")
    try:
        actions[name](Words.parse(rest))
    except RefusedError as error:
        sys.stderr.write(f"refused: {printable(str(error))}\n")
        return EXIT_REFUSED
    return EXIT_DONE


def _list(words: Words) -> None:
    words.take()
    found = msgspec.convert(words.remote().ask("GET", "/pools"), list[PoolInfo])
    if "--json" in words.switches:
        _say_json(found)
        return
    head = ("pool", "version", "state", "weight", "groups", "source", "trains on")
    rows = [
        (
            info.name,
            info.version,
            str(info.state),
            f"{info.weight:g}",
            str(info.groups_live),
            info.source,
            ", ".join(info.train),
        )
        for info in found
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        _say("  ".join(cells).rstrip())
    for info in found:
        for barred in info.quarantine:
            _say(f"quarantined: {barred.task or f'{barred.pool}/{barred.env}'}: {barred.reason}")


def _add(words: Words, *, replace: bool) -> None:
    name, source = words.take("NAME", "SOURCE")
    if is_path(source):
        source = str(
            Path(source).expanduser().absolute()
        )  # the run may have been started elsewhere
    body = {**read(words.settings), "name": name, "source": source, "replace": replace}
    if "--weight" in words.options:
        body |= read([f"weight={words.options['--weight']}"])
    if "--trusted" in words.switches:
        body["trusted"] = True
    if words.train:
        body["train"] = words.train
    _done(words, "POST", "/pools", body)


def _remove(words: Words) -> None:
    (name,) = words.take("NAME")
    _done(words, "DELETE", f"/pools/{_path(name)}")


def _lift(words: Words) -> None:
    (name,) = words.take("NAME")
    _done(words, "POST", f"/pools/{_path(name)}/lift")


def _done(words: Words, method: str, path: str, body: object = None) -> None:
    """Change a pool, and say what it is now."""
    answer = words.remote().ask(method, path, body)
    if "--json" in words.switches:
        _say_json(answer)
        return
    info = msgspec.convert(answer, PoolInfo)
    _say(f"pool {info.name}: version {info.version} is {info.state}, weight {info.weight:g}")


def _operate(words: Words, method: str, path: str) -> None:
    words.take()
    answer = words.remote().ask(method, path)
    if "--json" in words.switches:
        _say_json(answer)
    elif "path" in answer:
        _say(f"saved after step {answer['step']}: {answer['path']}")
    else:
        paused = ", paused" if answer["is_paused"] else ""
        groups = ", ".join(f"{number} {state}" for state, number in answer["groups"].items())
        _say(
            f"{answer['phase']}{paused}: step {answer['step']}/{answer['steps']}; groups: {groups}"
        )


def _path(name: str) -> str:
    """A name that may stand in a path; any other is of no pool."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise ConfigError(f"{name!r} is no name of a pool")
    return name


def _say(line: str) -> None:
    sys.stdout.write(printable(line) + "\n")


def _say_json(value: object) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
