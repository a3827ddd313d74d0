"""The terminal of a run: its log lines and, on a real terminal, where it is, below them.

The event loop only hands over a `Moment` now and then; rich draws in a thread of its own, and log
records come from the logging thread, so that a slow terminal holds nobody.
"""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rollout.metrics import Values
from rollout.panel import Moment, draw
from rollout.printable import printable
from rollout.status import Status

logger = logging.getLogger(__name__)

# How often the run is looked at, and drawn.
PERIOD_S = 0.5
DRAWN_PER_S = 2
# How often an evaluation says where it is, where nothing is drawn.
PROGRESS_EVERY_S = 10.0

_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


@dataclass(slots=True, kw_only=True)
class Screen:
    """What is told of a run while it goes on."""

    handler: logging.Handler
    """For the log records that a person wants."""
    is_live: bool
    """Whether something is drawn below them."""
    clock: Callable[[], float] = time.monotonic
    moment: Moment | None = None
    """What is drawn; None while the run starts or closes."""
    doing: str = "starting actors and learner"
    """Said where there is no moment."""
    _phase_since_s: float = 0.0
    _quiet_since_s: float = 0.0

    def show(self, status: Status, recent: Sequence[Values], *, max_lag: int) -> None:
        """Take over what is known now; never blocks."""
        now_s = self.clock()
        if self.moment is None or self.moment.status.phase != status.phase:
            self._phase_since_s = self._quiet_since_s = now_s
        self.moment = Moment(
            status=status,
            recent=tuple(recent),
            max_lag=max_lag,
            phase_s=now_s - self._phase_since_s,
        )
        is_due = now_s - self._quiet_since_s >= PROGRESS_EVERY_S
        if status.evaluation is not None and is_due and not self.is_live:
            self._quiet_since_s = now_s
            progress = status.evaluation
            logger.info("%s: %d/%d episodes", status.phase, progress.done, progress.total)

    @asynccontextmanager
    async def following(
        self, status: Callable[[], Status], recent: Sequence[Values], *, max_lag: int
    ) -> AsyncIterator[None]:
        """While inside, look at the run every `PERIOD_S`; `recent` are the values of its last steps."""

        async def follow() -> None:
            while True:
                self.show(status(), recent, max_lag=max_lag)
                await asyncio.sleep(PERIOD_S)

        async with asyncio.TaskGroup() as group:
            follower = group.create_task(follow(), name="terminal")
            try:
                yield
            finally:
                follower.cancel()
                self.moment, self.doing = None, "closing"


@contextmanager
def open_screen(clock: Callable[[], float] = time.monotonic) -> Iterator[Screen]:
    """The screen for this process's standard output; leaves nothing drawn behind.

    Something is drawn only where the output is a terminal that can move its cursor.
    """
    console = Console(file=sys.stdout, soft_wrap=True, markup=False, highlight=False, emoji=False)
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        yield Screen(handler=_PlainLines(sys.stdout), is_live=False, clock=clock)
        return
    screen = Screen(handler=ConsoleLines(console), is_live=True, clock=clock)
    begun_s = clock()
    live = Live(
        console=console,
        get_renderable=lambda: draw(screen.moment, screen.doing, clock() - begun_s),
        refresh_per_second=DRAWN_PER_S,
        transient=True,
    )
    with live:
        yield screen


class _PlainLines(logging.StreamHandler):
    """The message alone: tracebacks are in the file."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


class ConsoleLines(logging.Handler):
    """Messages, coloured by level; a record's `renderable` is printed in place of its message."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        renderable = getattr(record, "renderable", None)
        try:
            if renderable is not None:
                self._console.print(renderable, soft_wrap=False)
            else:
                style = _STYLES.get(record.levelno, "")
                self._console.print(Text(printable(record.getMessage()), style=style))
        except (OSError, ValueError):
            self.handleError(record)  # the terminal is gone: the file has everything
