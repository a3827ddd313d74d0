"""Tries an environment as a session would, before a run starts: one episode's beginning and its answer.

What is wrong with an author's class is said here once, with file, line and cure, in place of a fault for
every rollout of it.
"""

import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import msgspec

from configs.load import ConfigError
from envpool import env as base
from envpool.blame import defined_at, in_words, raised_at, shorten
from envpool.env import ToolEnv, ToolInputError, canonical, seed_globals
from envpool.source import PoolSource
from envpool.task import Config, config_digest
from envpool.varied import Varied, playable

# Of every trial: what is wrong for one configuration is most often wrong for all.
SEED = 0

T = TypeVar("T")

_BASE = Path(base.__file__)


def check_envs(
    source: PoolSource, used: Mapping[str, Iterable[int]], *, timeout_s: float = 20.0
) -> None:
    """Try environments of a pool, by id, at the levels given. Raises ConfigError for a mistake.

    One that takes longer than `timeout_s`, which a session has to start, is a mistake too.
    """
    with _chance_kept():
        for env_id, levels in used.items():
            for level in sorted(levels):
                with _alarm(timeout_s):
                    _Trial(source, env_id, level).run()


@contextmanager
def _alarm(timeout_s: float) -> Iterator[None]:
    """Raise TimeoutError inside after `timeout_s`; signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took over {timeout_s:g} s (envpool.start_timeout_s)")

    before = signal.signal(signal.SIGALRM, on_alarm)
    earlier = signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *earlier)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _chance_kept() -> Iterator[None]:
    """Leave the global generators, which sessions seed, as they were."""
    state = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    try:
        yield
    finally:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(numpy_state)


class _Trial:
    """One environment at one level."""

    def __init__(self, source: PoolSource, env_id: str, level: int) -> None:
        self._source = source
        self._pool = source.name
        self._id = env_id
        self._env = source.env(env_id)
        self._level = level

    def run(self) -> None:
        config = self._configuration()
        env, statement = self._start(config)
        again, other = self._start(config)
        if statement != other:
            self._refuse(
                "statement",
                f"gave {shorten(repr(statement))} and {shorten(repr(other))} for one configuration and "
                "one seed: take chance from self.np_random only",
            )
        if len(env.tools()) < 2:
            self._refuse("", "has no tool besides done: mark its methods with @tool")
        self._answer(env)
        for one in (env, again):
            self._call("close", one.close, "correct it")

    def _configuration(self) -> Config:
        """What `sample` draws, as a session gets it."""
        drawn = [self._sample() for _ in range(2)]
        try:
            digests = {config_digest(self._id, config) for config in drawn}
            packed = msgspec.msgpack.encode(drawn[0])
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            self._refuse(
                "sample",
                f"gave {shorten(repr(drawn[0]))}, which is no JSON ({in_words(error)}): use int, float, "
                "bool, str, list and dict only",
            )
        if len(digests) > 1:
            self._refuse(
                "sample",
                "gave two configurations for one seed of rng: draw with the rng that it is given only",
            )
        return msgspec.msgpack.decode(packed)

    def _sample(self) -> Config:
        config = self._call(
            "sample",
            lambda: self._source.sample(self._id, random.Random(SEED), self._level),
            "it must return a dict that Config takes",
        )
        if not isinstance(config, dict):
            self._refuse(
                "sample",
                f"gave {shorten(repr(config))}, which is no dict: return a dict with the fields of "
                f"{self._env.Config.__name__}",
            )
        return config

    def _start(self, config: Config) -> tuple[ToolEnv | Varied, str]:
        """A fresh instance, reset, and its statement."""
        seed_globals(SEED)
        plain = self._call("__init__", self._env, "it must take no argument")
        env = playable(plain, config)
        try:
            statement, _ = env.reset(seed=SEED, options=config)
        except ConfigError as error:
            fields = getattr(self._env.Config, "__struct_fields__", None)
            takes = f"has the fields {', '.join(fields)}" if fields is not None else "is no Struct"
            self._refuse(
                "sample",
                f"gave {shorten(repr(config))}, and that is no {shorten(str(error))}: "
                f"{self._env.Config.__name__} {takes}; make the two agree",
            )
        # The fault boundary of an author's code, as in a session.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._blame(_method(error), error, "correct it; no episode could start")
        if not isinstance(statement, str):
            self._refuse("statement", f"gave {shorten(repr(statement))}, no text: return a str")
        if not statement.strip():
            self._refuse("statement", "gave an empty text: say in it what is asked")
        return env, statement

    def _answer(self, env: ToolEnv | Varied) -> None:
        """Whether the right answer is one, and is right."""
        is_judged_by_author = self._env.check is not ToolEnv.check
        if is_judged_by_author:
            return  # what is right, and from when on, nothing but its check() knows
        reference = self._call("reference", env.reference, "it must return the right answer")
        answer = self._fitting(reference)
        is_right = self._call(
            "check", lambda: bool(env.check(answer)), "it must judge any answer of type Answer"
        )
        if not is_right:
            self._refuse(
                "check",
                f"says that reference(), {shorten(repr(reference))}, is wrong: reference() must give "
                "the same value each time, of type Answer",
            )

    def _fitting(self, reference: Any) -> Any:
        """The reference as the policy could give it."""
        kind = self._env.Answer
        try:
            plain = msgspec.to_builtins(reference, enc_hook=_plain)
            fitted = {"answer": canonical(plain, kind)}
            return self._env._tools["done"].check(fitted)["answer"]
        except (ToolInputError, TypeError, ValueError, RecursionError):
            found = type(reference).__name__
            cure = f"return {_name(kind)}"
            if reference is not None:
                cure = f"set Answer = {found} in the class, or {cure}"
            self._refuse(
                "reference",
                f"gave {shorten(repr(reference))} ({found}), and Answer is {_name(kind)}: {cure}",
            )

    def _call(self, method: str, call: Callable[[], T], cure: str) -> T:
        try:
            return call()
        # The fault boundary of an author's code, as in a session.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._blame(method, error, cure)

    def _blame(self, method: str, error: BaseException, cure: str) -> NoReturn:
        """Say what a method raised; a method that is not there was raised by the base class."""
        name = _method(error)
        own = _function(getattr(self._env, name, None))
        if isinstance(error, NotImplementedError) and own is _function(getattr(ToolEnv, name, 0)):
            self._refuse(name, "is missing: define it, as README.md's own environment does")
        place = raised_at(error)
        at = f" at {place}" if place else ""
        self._refuse(method, f"raised {in_words(error)}{at}: {cure}", is_placed=bool(place))

    def _refuse(self, method: str, what: str, *, is_placed: bool = False) -> NoReturn:
        """Raise ConfigError; names the place of the method's definition where no other is given."""
        owner = self._env.__qualname__.rpartition("<locals>.")[2]
        name = f"{owner}.{method}()" if method else owner
        own = getattr(self._env, method, None) if method else None
        place = "" if is_placed else self._place(own)
        level = f" at level {self._level}" if self._level else ""
        raise ConfigError(f"pools.{self._pool}: env {self._id!r}: {name}{place}{level} {what}")

    def _place(self, method: Any) -> str:
        """Where a method is defined, or its class if it is not the author's."""
        found = defined_at(method) if method is not None else ""
        code = getattr(_function(method), "__code__", None)
        if not found or (code is not None and Path(code.co_filename) == _BASE):
            found = defined_at(self._env)
        return f" ({found})" if found else ""


def _function(method: Any) -> Any:
    """What a bound method calls; anything else is given back."""
    return getattr(method, "__func__", method)


def _method(error: BaseException) -> str:
    """Which of an environment's methods an error of `reset` came from."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    known = [name for name in names if name in vars(ToolEnv)]
    return known[-1] if known else "reset"


def _plain(value: Any) -> Any:
    """A number or an array of numpy's, as Python's own."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NotImplementedError(f"{type(value).__name__} cannot be written in JSON")


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
