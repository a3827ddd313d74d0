"""What somebody who waits for the factory sees: a bar per stage on a terminal, else a line now and then."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

logger = logging.getLogger(__name__)

# Between two lines about one stage where there is no terminal.
EVERY_S = 10.0


class Stage:
    """One stage of known length under way."""

    def __init__(
        self, name: str, total: int, bar: Progress | None, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self.total = total
        self.num_done = 0
        self._bar = bar
        self._clock = clock
        self._said_s = self._begun_s = clock()
        self._task: TaskID | None = bar.add_task(name, total=total, note="") if bar else None

    def advance(self, note: str = "") -> None:
        """One more is done; `note` says how it stands, e.g. `30 accepted`."""
        self.num_done += 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, note=note)
        elif self._clock() - self._said_s >= EVERY_S and self.num_done < self.total:
            self._said_s = self._clock()
            self._say(note)

    def end(self, note: str = "") -> None:
        """Nothing more of it comes."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.total, note=note)
        else:
            self._say(note)

    @property
    def seconds(self) -> float:
        return self._clock() - self._begun_s

    def _say(self, note: str) -> None:
        more = f": {note}" if note else ""
        logger.info("%s %d/%d, %.0f s%s", self.name, self.num_done, self.total, self.seconds, more)


class Stages:
    """All stages, one after the other."""

    def __init__(self, bar: Progress | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar = bar
        self._clock = clock

    def begin(self, name: str, total: int) -> Stage:
        return Stage(name, total, self._bar, self._clock)


@contextmanager
def shown() -> Iterator[Stages]:
    """Stages as they are best shown here."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Stages(None)
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Stages(bar)
