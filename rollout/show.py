"""`python launch.py show`: the rollouts of a run, or the runs there are.

Reads the files of the run alone, so that it works while the run goes on and after it broke off.
"""

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from configs.load import ConfigError
from rollout import listing, select, transcript
from rollout.printable import printable

HELP = """\
usage: python launch.py show [DIR] [filter ...] [--json]

DIR is the directory of a run: its rollouts are shown, the newest five unless told otherwise. Of a
directory of runs (runs/, where none is named) the runs are listed, newest first.

filters: all of them must hold. A text takes = and !=, and several values with commas between them;
a number takes = != < <= > >= ; put quotes around < and >, which the shell takes for itself
  env pool task group actor    as the run's files name them           env=sum_list  group=12
  stop       how it ended: {stop}
  state      end of its group: {state}
  step       the optimizer step that trained on it                    step=17
  lag        of its oldest trained token, in versions                 lag=2
  reward     the verdict; none where a fault left no verdict          reward=0  'reward<0.5'
  turns      replies of the policy                                    'turns>6'
  bad_calls  calls that were malformed, unknown or had wrong arguments
  tokens     tokens sampled              seconds   from start to end
  member     of its group                attempt   0, or 1 after a fault
  eval       read an evaluation instead: {eval}          eval=after
  set mode   of an evaluation: its set; {mode}        set=fresh mode=greedy

which and how many
  order      {order}       longest: turns; worst: lowest reward
  limit      how many (5)
  --json     one JSON object per line, as the run's files have them
""".format(
    **{name: ", ".join(values) for name, values in select.CHOICES.items()},
    eval=", ".join(select.LABELS),
    order=", ".join(select.Order),
)

# Where runs are written unless told otherwise.
RUNS = Path("runs")


def main(arguments: Sequence[str]) -> int:
    """Show what the arguments ask for. Raises ConfigError for a user's mistake."""
    is_json = "--json" in arguments
    words = [word for word in arguments if word != "--json"]
    options = [word for word in words if word.startswith("-")]
    if options:
        raise ConfigError(f"show has no option {options[0]}: the only one is --json")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the terminal's encoding lacks is shown as an escape.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _show(words, is_json=is_json)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`head`) has enough; the interpreter's own flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _show(words: list[str], *, is_json: bool) -> None:
    has_folder = bool(words) and (Path(words[0]).exists() or not select.is_filter(words[0]))
    folder = Path(words.pop(0)) if has_folder else RUNS
    if has_folder and not folder.is_dir():
        raise ConfigError(f"run directory {str(folder)!r} does not exist{_newest()}")
    query = select.parse(words)
    console = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
    if listing.is_run(folder):
        _show_rollouts(console, folder, query, is_json=is_json)
    elif words:
        raise ConfigError(f"name the directory of a run before {words[0]}{_newest()}")
    else:
        if has_folder and folder.resolve() != RUNS.resolve() and not listing.runs(folder):
            raise ConfigError(
                f"{str(folder)!r} is not the directory of a run, and there is none directly under it"
                f"{_newest()}"
            )
        _list_runs(console, folder, is_json=is_json)


def _show_rollouts(console: Console, run_dir: Path, query: select.Query, *, is_json: bool) -> None:
    selection = select.select(run_dir, query)
    for row in selection.rows:
        if is_json:
            _write_json(msgspec.to_builtins(row))
        else:
            transcript.write(console, row)
    if not is_json:
        console.print(Text(_count(run_dir, query, selection), style="dim"))


def _count(run_dir: Path, query: select.Query, selection: select.Selection) -> str:
    """What was looked at, and why there may be nothing."""
    kind = f"evaluation episodes ({query.label})" if query.label else "rollouts"
    damaged = f"; {selection.unreadable} lines cannot be read" if selection.unreadable else ""
    looked = f"{selection.looked_at} {kind} looked at{damaged}"
    if selection.rows:
        more = f"; limit={query.limit * 4} shows more" if len(selection.rows) == query.limit else ""
        return f"{len(selection.rows)} shown, {query.order} first, of {looked}{more}"
    if selection.looked_at:
        unknown = "".join(f"; {words}" for words in select.unknown(query, selection))
        envs = ", ".join(sorted(selection.names["env"]))
        return f"nothing matches: {looked}, of {printable(envs + unknown)}"
    others = [f"eval={label}" for label in select.labels(run_dir)]
    hint = f"; there are evaluation episodes: {' or '.join(others)}" if others else ""
    return f"no {kind} in {run_dir} yet{damaged}{hint}"


def _list_runs(console: Console, folder: Path, *, is_json: bool) -> None:
    lines = listing.runs(folder)
    if is_json:
        for line in lines:
            _write_json(msgspec.to_builtins(line, enc_hook=str))
    elif not lines:
        console.print(f"no runs under {folder}/ yet: python launch.py makes one")
    else:
        console.print(Text(listing.HEAD, style="bold"))
        for line in lines:
            console.print(Text(printable(str(line))))


def _newest() -> str:
    known = [str(line.path) for line in listing.runs(RUNS)[:3]]
    return f"; the newest here: {', '.join(known)}" if known else ""


def _write_json(value: object) -> None:
    # json, unlike msgspec, can keep to ASCII, so that no control character gets through.
    sys.stdout.write(json.dumps(value).replace("\x7f", "\\u007f") + "\n")
