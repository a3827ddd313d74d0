"""`verify`: what a draft of an environment has to pass before it may be in a pool.

    Draft -> screen -> original solution, independent solvers -> statement, reference
          -> oracle by tools alone -> agents that must not win -> certificate -> Made

Code of the draft and of the solutions runs in the sandbox alone, the two never in one process. What is
wrong with the code refuses the environment; what is wrong with one configuration refuses that one.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import msgspec

from configs.synth import VerifyRecipe
from envpool.task import Config, config_digest
from envpool.tools import Schema
from synth import oracle, shown
from synth.certificate import certify, longest_s, too_short
from synth.court import INSIDE, Answer, Court, Failure, JobFault, Room, solution_name, told
from synth.oracle import OracleError
from synth.problem import Problem
from synth.records import Draft, Made, MadeTask, Move, Refusal
from synth.screen import screen
from synth.shown import in_brief

__all__ = ["STAGE", "Verdict", "verify"]

STAGE = "verify"
# Seeds of the two runs that must not differ.
SEEDS = (0, 1)
# The file of a draft's checker.
CHECKER = "_checker.py"
# Examples of a problem that the original has to pass.
MAX_TESTS = 64
# Configurations drawn to know how common an answer is.
POPULATION = 64
# A solver that fails like this on a configuration has not said anything against the others.
ABSTAINS = frozenset({"timeout", "memory"})

T = TypeVar("T")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a draft."""

    made: Made | None = None
    """The environment with the tasks that passed; None if none did."""
    refusals: tuple[Refusal, ...] = ()


class _Refused(Exception):
    """The environment, or the configuration that is being looked at, does not pass."""

    def __init__(self, reason: str, detail: str = "", config: Config | None = None) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.config = config


class _ConfigRefused(_Refused):
    """One configuration does not pass; others may."""


async def verify(
    court: Court, draft: Draft, problem: Problem | None, recipe: VerifyRecipe
) -> Verdict:
    """Judge a draft in the sandbox. `problem` adds its tests. Raises nothing about the draft."""
    trial = _Trial(court, draft, problem, recipe)
    try:
        made = await trial.run()
    except _Refused as refused:
        return Verdict(refusals=(*trial.refusals, trial.refusal(refused)))
    except JobFault as fault:
        reason = "fault" if fault.reason == "raised" else fault.reason
        refused = _Refused(reason, fault.detail, trial.config)
        return Verdict(refusals=(*trial.refusals, trial.refusal(refused)))
    return Verdict(made=made, refusals=tuple(trial.refusals))


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment says of a configuration."""

    refused: str = ""
    statement: str = ""
    again: list[str] = []
    reference: Any = None
    tools: list[Schema] = []


class _Mishap(msgspec.Struct, frozen=True, kw_only=True):
    """What a bad call did that it must not."""

    reason: str
    detail: str


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration whose answer is settled."""

    config: Config
    level: int
    answer: Any
    original: Any
    """The original solution's answer, where several are right."""
    prompt: str
    tools: list[Schema]


class _Trial:
    """One draft."""

    def __init__(
        self, court: Court, draft: Draft, problem: Problem | None, recipe: VerifyRecipe
    ) -> None:
        self._court, self._draft, self._problem, self._recipe = court, draft, problem, recipe
        self.refusals: list[Refusal] = []
        """Of configurations."""
        self.config: Config | None = None
        """The one that is being looked at."""
        self._used: dict[str, bool] = {}
        """Tools that traces call, and whether they changed hidden state."""

    def refusal(self, refused: _Refused) -> Refusal:
        return Refusal(
            problem=self._draft.problem,
            env=self._draft.env,
            config=refused.config,
            stage=STAGE,
            reason=refused.reason,
            detail=refused.detail,
        )

    async def run(self) -> Made | None:
        self._screen()
        configs = self._distinct()
        answers = await self._solved(configs)
        files = {"draft.py": self._draft.source}
        async with AsyncExitStack() as stack:
            room = await stack.enter_async_context(
                self._court.room(files, longest_s=longest_s(self._recipe))
            )
            if room.envs != [self._draft.env]:
                raise _Refused(
                    "env id", f"its source defines {room.envs}, not {self._draft.env!r} alone"
                )
            self._room = room
            self._desk = await stack.enter_async_context(room.desk())
            # A process of its own: no configuration is ever in it.
            self._oracle_desk = await stack.enter_async_context(room.desk())
            known = await self._settled(answers)
            tasks = await self._tasks(known)
        self.config = None
        if not tasks:
            return None
        return self._made(known[0].tools, tasks)

    # -- before the draft runs --------------------------------------------------------------------

    def _screen(self) -> None:
        """Refuse text that must not be run at all."""
        if what := screen(self._draft.source):
            raise _Refused("screen", what)
        role = "program" if self._kind == "stdin" else "solution"
        for number, source in enumerate(self._draft.solutions):
            if what := screen(source, role=role):
                raise _Refused("screen", f"solution {number}: {what}")
        if what := screen(self._draft.checker, role="solution"):
            raise _Refused("screen", f"checker: {what}")
        if not self._draft.solutions:
            raise _Refused("no solution", "a draft has the original solution, which decides")

    def _distinct(self) -> list[tuple[Config, int]]:
        """Configurations that can travel, each once, with their levels."""
        levels = self._draft.levels or (0,) * len(self._draft.configs)
        found: dict[str, tuple[Config, int]] = {}
        for config, level in zip(self._draft.configs, levels, strict=False):
            try:
                msgspec.msgpack.encode(config)
                found.setdefault(config_digest(self._draft.env, config), (config, level))
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                self._put_aside(_ConfigRefused("config", f"it is no JSON: {error}"))
        configs = list(found.values())[: self._recipe.drawn]
        if not configs:
            raise _Refused("no configuration", "a draft has some to try")
        return configs

    async def _solved(self, configs: Sequence[tuple[Config, int]]) -> list[tuple[Config, int, Any]]:
        """What the original answers, where it passes its tests and no solver disagrees."""
        draft = self._draft
        files = {solution_name(i): source for i, source in enumerate(draft.solutions)}
        checker = {CHECKER: draft.checker} if draft.checker else {}
        timeout_s = self._recipe.solve_timeout_s
        async with self._court.room(files | checker, timeout_s=timeout_s) as room:
            await self._pass_tests(room)
            names = list(files)
            asked = [config for config, _ in configs]
            original = await room.solve(names[0], draft.entry, asked, kind=self._kind)
            solved = []
            for (config, level), answer in zip(configs, original, strict=True):
                if isinstance(answer, Failure):
                    reason = f"solution {answer.reason}"
                    self._put_aside(_ConfigRefused(reason, answer.detail, config))
                else:
                    solved.append((config, level, answer.value))
            if not solved:
                raise _Refused("solution fails", "the original answers none of the configurations")
            await self._checked(room, [(value, config) for config, _, value in solved], "solution")
            for name in names[1:]:
                await self._agree(room, name, solved)
        return solved

    async def _pass_tests(self, room: Room) -> None:
        """Refuse an original that fails its problem's own examples."""
        tests = self._problem.tests[:MAX_TESTS] if self._problem is not None else ()
        if self._kind != "stdin" and self._problem is not None and self._problem.kind == "stdin":
            return  # They are of the program that this solution was made from.
        asked = [test.args for test in tests]
        found = await room.solve(solution_name(0), self._draft.entry, asked, kind=self._kind)
        to_check = []
        for test, answer in zip(tests, found, strict=True):
            given = in_brief(test.args)
            if isinstance(answer, Failure):
                raise _Refused("tests", f"{given}: {answer.reason}: {answer.detail}")
            if self._draft.checker:
                to_check.append((answer.value, test.args))
            elif not shown.equal(answer.value, test.answer):
                words = f"{in_brief(answer.value)}, not {in_brief(test.answer)}"
                raise _Refused("tests", f"{given} is answered by {words}")
        await self._checked(room, to_check, "tests")

    async def _agree(
        self, room: Room, name: str, solved: Sequence[tuple[Config, int, Any]]
    ) -> None:
        """Refuse where an independent solver says otherwise."""
        asked = [config for config, _, _ in solved]
        found = await room.solve(name, self._draft.entry, asked, kind=self._kind)
        to_check = []
        for (config, _, value), answer in zip(solved, found, strict=True):
            if isinstance(answer, Answer):
                to_check.append((answer.value, config))
                if self._draft.checker or shown.equal(answer.value, value):
                    continue
                said = in_brief(answer.value)
            elif answer.reason in ABSTAINS:
                continue
            else:
                said = f"{answer.reason}: {answer.detail}"
            words = f"{name} says {said}, the original {in_brief(value)}"
            raise _Refused("solvers disagree", words, config)
        await self._checked(room, to_check, "solvers disagree")

    async def _checked(self, room: Room, cases: Sequence[tuple[Any, Config]], reason: str) -> None:
        """Refuse where the draft's checker, if it has one, says that an answer is wrong."""
        if not self._draft.checker or not cases:
            return
        arguments = {"source": CHECKER, "cases": [list(case) for case in cases]}
        verdicts = told(await room.run(f"{INSIDE}.solving:check", arguments), list[bool])
        _match(verdicts, cases)
        for (answer, config), is_right in zip(cases, verdicts, strict=True):
            if not is_right:
                words = f"the checker says that {in_brief(answer)} is wrong"
                raise _Refused(reason, words, config)

    # -- the draft --------------------------------------------------------------------------------

    async def _settled(self, solved: Sequence[tuple[Config, int, Any]]) -> list[_Known]:
        """Configurations that the environment takes, with references that are the original's answers."""
        known: list[_Known] = []
        for config, level, answer in solved:
            self.config = config
            try:
                found = await self._ask("candidate:facts", _Facts, config=config)
                known.append(self._fits(config, level, answer, found))
            except _ConfigRefused as refused:
                self._put_aside(refused)
        if not known:
            raise _Refused("config", "the environment takes none of the configurations")
        if self._draft.checker:
            cases = [(one.answer, one.config) for one in known]
            async with self._court.room({CHECKER: self._draft.checker}) as room:
                await self._checked(room, cases, "reference")
        self.config = known[0].config
        if mistake := await self._ask("candidate:conform", str, config=known[0].config):
            raise _Refused("conformance", mistake, known[0].config)
        return known

    def _fits(self, config: Config, level: int, answer: Any, found: _Facts) -> _Known:
        if found.refused:
            raise _ConfigRefused("config", found.refused, config)
        prompt, tools, reference = found.statement, found.tools, found.reference
        for again in found.again:
            if again != prompt:
                words = f"two resets gave {prompt[-120:]!r} and {again[-120:]!r}"
                raise _Refused("not deterministic", words, config)
        kind = shown.answer_type(tools)
        if not self._draft.checker and not shown.equal(reference, answer, kind):
            words = f"it gives {in_brief(reference)}, the original {in_brief(answer)}"
            raise _Refused("reference", words, config)
        if part := shown.gives_away(prompt, config):
            words = f"the statement prints {part[:200]}: leave out what is hidden, or change the example"
            raise _ConfigRefused("statement shows", words, config)
        return _Known(
            config=config,
            level=level,
            answer=reference,
            original=answer,
            prompt=prompt,
            tools=tools,
        )

    async def _tasks(self, known: Sequence[_Known]) -> list[MadeTask]:
        """Those that pass all the rest, as many as are wanted."""
        recipe = self._recipe
        others = [one.config for one in known]
        drawn = await self._drawn(known)
        for mishap in await self._ask("agents:mishaps", list[_Mishap], config=known[0].config):
            raise _Refused(mishap.reason, mishap.detail, known[0].config)
        tasks: list[MadeTask] = []
        for one in known:
            if len(tasks) == recipe.configs:
                break
            self.config = one.config
            try:
                tasks.append(await self._task(one, others, drawn))
            except _ConfigRefused as refused:
                self._put_aside(refused)
            except OracleError as error:
                raise _Refused(error.reason, error.detail, one.config) from error
        won = sum(task.random_rate for task in tasks)
        if tasks and won / len(tasks) > recipe.max_random_rate:
            words = f"calls at random won {won / len(tasks):.0%} of episodes"
            raise _Refused("random agent wins", f"{words}, over {recipe.max_random_rate:.0%}")
        return tasks

    async def _drawn(self, known: Sequence[_Known]) -> list[tuple[str, Any]]:
        """Statements and answers of more configurations, on which the original has to agree, too."""
        found = await self._ask(
            "nearby:population",
            list[tuple[Config, str, Any]],
            others=[one.config for one in known],
            count=POPULATION,
            level=known[0].level,
            seed=self._recipe.seed,
        )
        kind = shown.answer_type(known[0].tools)
        settled = {config_digest(self._draft.env, one.config) for one in known}
        fresh = [
            (config, answer)
            for config, _, answer in found
            if config_digest(self._draft.env, config) not in settled
        ]
        if fresh and not self._draft.checker:
            configs = [config for config, _ in fresh]
            entry, original = self._draft.entry, self._draft.solutions[:1]
            (answers,) = await self._court.solve(original, entry, configs, kind=self._kind)
            for (config, reference), answer in zip(fresh, answers, strict=True):
                if isinstance(answer, Answer) and not shown.equal(reference, answer.value, kind):
                    words = f"it gives {in_brief(reference)}, the original {in_brief(answer.value)}"
                    raise _Refused("reference", words, config)
        return [(statement, answer) for _, statement, answer in found]

    async def _task(
        self, one: _Known, others: Sequence[Config], drawn: Sequence[tuple[str, Any]]
    ) -> MadeTask:
        rate = shown.guess_rate(one.prompt, drawn)
        if rate > self._recipe.max_guess_rate:
            words = f"one answer is right for {rate:.0%} of configurations"
            bound = f"over {self._recipe.max_guess_rate:.0%} (verify.max_guess_rate)"
            cure = "let inputs differ more, or ask for more than a small number or a yes"
            raise _ConfigRefused("guessable", f"{words}, {bound}: {cure}", one.config)
        if won := await self._ask("agents:constants_that_win", list, config=one.config):
            words = f"{in_brief(won[0])} wins without a call"
            raise _ConfigRefused("null agent wins", words, one.config)
        if won := await self._ask("agents:seen_that_win", list, config=one.config):
            words = f"{in_brief(won[0])} is shown by the tools without parameters, and wins"
            raise _ConfigRefused("observer wins", words, one.config)
        await self._graded(one)
        moves = await self._played(one)
        random_wins = await self._ask(
            "agents:wins_at_random",
            int,
            config=one.config,
            episodes=self._recipe.random_episodes,
            seed=self._recipe.seed,
        )
        certificate = await certify(
            self._desk, one.config, others, moves, level=one.level, recipe=self._recipe
        )
        if certificate.calls < self._recipe.min_certificate:
            raise _ConfigRefused("shortcut", too_short(certificate, self._recipe), one.config)
        return MadeTask(
            config=one.config,
            level=one.level,
            answer=one.answer,
            prompt=one.prompt,
            trace=tuple(moves),
            certificate=certificate,
            guess_rate=rate,
            random_rate=random_wins / self._recipe.random_episodes,
        )

    async def _graded(self, one: _Known) -> None:
        """Refuse a grader that depends on how an answer is written, or is asked twice."""
        right = [*shown.right_forms(one.answer), *shown.right_forms(one.original)]
        wrong = shown.wrong_forms(one.answer)
        is_judged_by_author = bool(self._draft.checker)
        asked = right if is_judged_by_author else [*right, *wrong]
        rewards = await self._ask("candidate:judged", list[float], config=one.config, answers=asked)
        _match(rewards, asked)
        due = [1.0] * len(right) + [0.0] * len(wrong)
        for answer, reward, wanted in zip(asked, rewards, due, strict=False):
            if reward != wanted:
                words = f"{answer!r} got {reward}, where {in_brief(one.answer)} is right"
                raise _Refused("grading", words, one.config)
        pair = {"wrong": wrong[0], "right": one.answer}
        rewards = await self._ask("candidate:after_done", list[float], config=one.config, **pair)
        if not is_judged_by_author and any(rewards):
            raise _Refused("done twice", f"a second answer counted: {rewards}", one.config)

    async def _played(self, one: _Known) -> list[Move]:
        """The oracle's trace without needless repeats: won twice alike, and once more without them."""
        env, config = self._draft.env, one.config
        played = await oracle.play(self._room, self._oracle_desk, env, config, SEEDS[0])
        async with self._room.desk() as fresh:
            if not await oracle.decides_again(fresh, played):
                raise _Refused("not deterministic", "the oracle makes other calls again", config)
        prompt, moves = played
        if prompt != one.prompt or not await self._replay(one, moves, SEEDS[1]):
            words = "an episode with another seed is told or answered differently"
            raise _Refused("not deterministic", words, config)
        calls = [[move.name, move.arguments] for move in moves]
        changed = await self._ask("candidate:changing", list[bool], config=config, calls=calls)
        _match(changed, moves)
        for move, is_change in zip(moves, changed, strict=True):
            self._used[move.name] = self._used.get(move.name, False) or bool(is_change)
        short = oracle.shortened(moves, changed)
        if len(short) < len(moves) and not await self._replay(one, short, SEEDS[0]):
            words = "a repeated call that changes nothing matters: count no calls"
            raise _Refused("hidden clock", words, config)
        return short

    async def _replay(self, one: _Known, moves: Sequence[Move], seed: int) -> bool:
        env, prompt = self._draft.env, one.prompt
        return await oracle.replay(self._room, env, one.config, prompt, moves, seed)

    def _made(self, tools: list[Schema], tasks: Sequence[MadeTask]) -> Made:
        names = [schema["function"]["name"] for schema in tools]
        changes = tuple(name for name in names if self._used.get(name) and name != "done")
        unused = tuple(name for name in names if name not in self._used)
        return Made(
            draft=self._draft, tools=tools, changes=changes, unused=unused, tasks=tuple(tasks)
        )

    # -- the way there ----------------------------------------------------------------------------

    @property
    def _kind(self) -> Any:
        """Whether the solutions are called, or read and print."""
        is_stdin = self._problem is not None and self._problem.kind == "stdin"
        return "stdin" if is_stdin and self._has_stdin else "function"

    @property
    def _has_stdin(self) -> bool:
        return all(config.keys() == {"stdin"} for config in self._draft.configs)

    async def _ask(self, job: str, kind: type[T], **arguments: Any) -> T:
        """What a job of ours tells of the draft, from a process with it. Raises JobFault."""
        return told(await self._desk.run(f"{INSIDE}.{job}", arguments), kind)

    def _put_aside(self, refused: _ConfigRefused) -> None:
        self.refusals.append(self.refusal(refused))


def _match(given: Sequence[Any], asked: Sequence[Any]) -> None:
    """Raise JobFault unless a job has answered all that it was asked."""
    if len(given) != len(asked):
        raise JobFault("crashed", f"a job gave {len(given)} answers to {len(asked)} questions")
