"""`Synthesizer`: drafts of environments from a language model, and repairs of those that were refused.

    problem -> `samples` conversations -> drafts -> repair(draft, why) -> drafts ...
            -> `solvers` conversations -> solutions of every draft

Each conversation has a seed of its own. A reply that is no environment goes back with what is wrong with
it; so does one that the verifier refuses, with the verifier's words. Both count as repairs.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from configs.load import ConfigError
from configs.synth import LlmRecipe
from synth.address import find_key, find_url, section_of
from synth.chat import Chat, EndpointError, Sleep
from synth.llm import batch
from synth.llm.batch import BatchReport
from synth.llm.cache import ReplyCache, Request
from synth.llm.conversation import Conversation, about_environment, about_solver
from synth.llm.endpoint import Endpoint
from synth.llm.prompts import Prompts
from synth.llm.replies import (
    RefusedReply,
    Reply,
    Written,
    draft_of,
    fields_of,
    read_environment,
    read_solver,
)
from synth.llm.usage import Usage
from synth.problem import Problem, ProblemError
from synth.records import Draft, Refusal

log = logging.getLogger(__name__)

STAGE = "llm"

T = TypeVar("T")


class _BudgetSpent(Exception):
    """No more may be asked."""


class Synthesizer:
    """Asks for environments; an async context manager. Any number of problems may be under way.

    Raises ConfigError on entry for settings that cannot work, and EndpointError from any question once
    the endpoint is of no use. What was answered until then is in the cache.
    """

    def __init__(
        self,
        recipe: LlmRecipe,
        out: Path,
        *,
        environ: Mapping[str, str] = os.environ,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`out` is the run's directory, where the cache is unless the recipe has another place."""
        self._recipe = recipe
        self._environ = environ
        self._sleep = sleep
        self._cache = ReplyCache(Path(recipe.cache) if recipe.cache else out / "replies")
        self._slots = asyncio.Semaphore(recipe.concurrency)
        self._conversations: dict[str, Conversation] = {}
        self._endpoint: Endpoint | None = None
        self._usage = Usage()
        self.refusals: list[Refusal] = []
        """All replies that could not be used, as they came, also those that were repaired later."""

    @property
    def usage(self) -> Usage:
        """What asking took so far; it goes on counting."""
        self._usage.retries = self._endpoint.retries if self._endpoint else 0
        return self._usage

    async def __aenter__(self) -> Self:
        _check(self._recipe)
        self._prompts = await asyncio.to_thread(Prompts.load)
        try:
            await asyncio.to_thread(self._cache.prepare)
        except OSError as error:
            raise ConfigError(
                f"llm.cache={self._recipe.cache!r}: {error}: name a directory that can be written"
            ) from error
        if self._recipe.batch != "write":
            self._endpoint = await self._connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._endpoint is not None:
            await self._endpoint.close()

    async def _connect(self) -> Endpoint:
        recipe, url = self._recipe, find_url(self._recipe, self._environ)
        chat = await asyncio.to_thread(
            Chat,
            url=url,
            key=find_key(recipe, url, self._environ),
            section=section_of(recipe),
            retries=recipe.retries,
            timeout_s=recipe.timeout_s,
            sleep=self._sleep,
        )
        return Endpoint(chat)

    async def drafts(self, problem: Problem) -> list[Draft | Refusal]:
        """First drafts of a problem, all different, and after them what was refused for good."""
        unfit = self._unfit(problem)
        if unfit is not None:
            return [unfit]
        samples, solvers = self._first(problem)
        async with asyncio.TaskGroup() as group:
            written = [group.create_task(self._talk(one, read_environment)) for one in samples]
            solved = [group.create_task(self._talk(one, read_solver)) for one in solvers]
        # Only now, so that what was under way was answered and kept.
        refused: list[Refusal] = []
        for task in (*written, *solved):
            match task.result():
                case EndpointError() as error:
                    raise error
                case Refusal() as refusal:
                    refused.append(refusal)
        solutions = [found[0] for task in solved if isinstance(found := task.result(), tuple)]
        drafts: list[Draft] = []
        for task in written:
            if isinstance(found := task.result(), tuple):
                draft = self._draft(*found, solutions)
                if not any(_is_same(draft, other) for other in drafts):
                    drafts.append(draft)
        return [*drafts, *refused]

    async def repair(self, draft: Draft, message: str) -> Draft | Refusal | None:
        """A further draft, after the verifier's message; a refusal where the model gave none.

        None where repairs are used up, or `draft` is none that this object gave: a resumed run asks for
        the drafts of a problem first, which the cache answers.
        """
        conversation = self._conversations.get(draft.digest)
        if conversation is None or not conversation.repairs_left:
            return None
        while True:
            asked = conversation.asked_again(self._prompts, message)
            found = await self._talk(asked, read_environment)
            if isinstance(found, EndpointError):
                raise found
            if isinstance(found, Refusal):
                return found
            repaired = self._draft(*found, draft.solutions)
            if not _is_same(repaired, draft):
                return repaired
            conversation = found[1]
            refusal = self._refuse(conversation.problem, "unchanged", "the model sent it again")
            if not conversation.repairs_left:
                return refusal

    def requests(self, problems: Iterable[Problem]) -> dict[str, Request]:
        """The first requests of problems, by the id that they have in a batch."""
        found = {}
        for problem in problems:
            if self._unfit(problem) is not None:
                continue
            samples, solvers = self._first(problem)
            for one in (*samples, *solvers):
                request = self._request(one)
                found[batch.custom_id(one.name, request)] = request
        return found

    async def write_batch(self, problems: Iterable[Problem], path: Path) -> int:
        """Write the batch request file of problems; how many requests it has."""
        requests = self.requests(problems)
        await asyncio.to_thread(batch.write, path, requests)
        return len(requests)

    async def read_batch(self, problems: Iterable[Problem]) -> BatchReport:
        """Fill the cache from the recipe's reply file; what it lacks is asked of the endpoint later."""
        path, requests = Path(self._recipe.replies), self.requests(problems)
        report = await asyncio.to_thread(batch.read, path, requests, self._cache)
        for name in report.missing:
            self._usage.fail("batch_missing")
            log.warning("batch: %s has no line for %s", path, name)
        for name, why in report.failed.items():
            self._usage.fail("batch_failed")
            log.warning("batch: %s: %s: %s", path, name, why)
        return report

    def _first(self, problem: Problem) -> tuple[list[Conversation], list[Conversation]]:
        """Conversations to begin with: about environments, about solvers."""
        prompts, repairs = self._prompts, self._recipe.repairs
        return (
            [about_environment(problem, i, prompts, repairs) for i in range(self._recipe.samples)],
            [about_solver(problem, i, prompts, repairs) for i in range(self._recipe.solvers)],
        )

    async def _talk(
        self, conversation: Conversation, read: Callable[[Reply, Problem], T]
    ) -> tuple[T, Conversation] | Refusal | EndpointError:
        """Ask until a reply can be read; the last refusal where none could.

        An EndpointError is a result, so that it takes nothing away from those beside it.
        """
        problem = conversation.problem
        while True:
            try:
                reply = await self._reply(self._request(conversation))
            except EndpointError as error:
                return error
            except _BudgetSpent:
                return self._refuse(problem, "budget", "the budget was spent before the question")
            except RefusedReply as refused:
                return self._refuse(problem, refused.reason, refused.text)
            try:
                return read(reply, problem), conversation.answered(reply)
            except RefusedReply as refused:
                refusal = self._refuse(
                    problem, refused.reason, f"{conversation.name}: {refused.text}"
                )
                if not refused.is_repairable or not conversation.repairs_left:
                    return refusal
                conversation = conversation.after_refusal(self._prompts, reply, refused)

    async def _reply(self, request: Request) -> Reply:
        """From the cache, else from the endpoint."""
        self._usage.prompts += 1
        key = request.key
        cached = await asyncio.to_thread(self._cache.get, key)
        if cached is not None:
            self._usage.add(cached, self._recipe, is_cached=True)
            return cached
        if self._endpoint is None:
            raise RuntimeError("llm.batch=write asks nothing: call write_batch only")
        async with self._slots:
            # Those under way are let end, so a bound is passed by `concurrency` replies at most.
            if self._usage.is_over(self._recipe):
                self._usage.is_budget_spent = True
                raise _BudgetSpent
            reply = await self._endpoint.ask(request)
            self._usage.add(reply, self._recipe, is_cached=False)
        await asyncio.to_thread(self._cache.put, key, reply)
        return reply

    def _request(self, conversation: Conversation) -> Request:
        return Request(
            model=self._recipe.model,
            messages=conversation.messages,
            seed=conversation.seed,
            temperature=self._recipe.temperature,
            max_tokens=self._recipe.max_tokens,
            versions=self._prompts.versions,
        )

    def _draft(self, written: Written, conversation: Conversation, solvers: Iterable[str]) -> Draft:
        """A draft, whose conversation can go on."""
        problem = conversation.problem
        notes = (
            f"model {self._recipe.model}",
            f"prompts: {self._prompts.versions}",
            f"{conversation.name}, seed {conversation.seed}, {conversation.repairs} repairs",
        )
        draft = draft_of(problem, written, solvers, origin="llm", notes=notes)
        self._conversations[draft.digest] = conversation
        return draft

    def _unfit(self, problem: Problem) -> Refusal | None:
        """Why nothing can be asked about a problem."""
        try:
            fields_of(problem)
        except ProblemError as error:
            return self._refuse(problem, "solution", str(error))
        return None

    def _refuse(self, problem: Problem, reason: str, detail: str) -> Refusal:
        self._usage.fail(reason)
        refusal = Refusal(problem=problem.id, stage=STAGE, reason=reason, detail=detail)
        self.refusals.append(refusal)
        return refusal


def _check(recipe: LlmRecipe) -> None:
    """Raise ConfigError for settings that do not go together."""
    if not recipe.model:
        raise ConfigError("llm.model='': name the model to ask")
    if recipe.batch == "read" and not recipe.replies:
        raise ConfigError("llm.replies='': batch=read needs the reply file that came back")
    if recipe.max_cost and not recipe.price_in + recipe.price_out:
        raise ConfigError(
            f"llm.max_cost={recipe.max_cost:g}: without llm.price_in and llm.price_out nothing is known to "
            "cost anything: set them, or use llm.max_total_tokens"
        )


def _is_same(one: Draft, other: Draft) -> bool:
    """Whether two drafts are one environment with the same configurations."""
    return (one.source, one.configs) == (other.source, other.configs)
