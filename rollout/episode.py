"""Play one member of a group until it stops; a bad rollout is data, never a crash.

    open session -> [ generate -> parse the call -> environment step -> append observation ]* -> Rollout

Tokens stay in this process: the conversation grows by what the engine sampled and by the encoded
observation. Only cancellation escapes.
"""

import asyncio
import logging
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from configs.schema import RolloutSection
from envpool.pool import Outcome, StepResult
from envpool.task import Task
from rollout import toolcall
from rollout.engine import Engine, EngineStop
from rollout.faults import RolloutFault, boundary
from rollout.types import Grant, Rollout, Row, Sampling, StopReason, Turn

if TYPE_CHECKING:  # it brings transformers, which the driver, who only names an actor, does without
    from rollout.tokens import ChatTokens, Conversation

logger = logging.getLogger(__name__)


class Session(Protocol):
    """A live environment."""

    @property
    def prompt(self) -> str: ...
    @property
    def tools(self) -> list[dict]: ...
    async def step(self, action: str) -> StepResult: ...
    async def close(self) -> None: ...


class Sessions(Protocol):
    """Where sessions come from: the pool in this process, or a host."""

    async def open(self, task: Task) -> Session: ...


@dataclass(slots=True, kw_only=True, frozen=True)
class Limits:
    """Budgets of one rollout."""

    max_turns: int
    max_reply_tokens: int
    max_context_tokens: int
    timeout_s: float

    @classmethod
    def of(cls, section: RolloutSection) -> "Limits":
        """Those of a run."""
        return cls(
            max_turns=section.max_turns,
            max_reply_tokens=section.max_reply_tokens,
            max_context_tokens=section.max_context_tokens,
            timeout_s=section.timeout_s,
        )


@dataclass(slots=True, kw_only=True)
class Episode:
    """One attempt by one member. `play` is called once; `turns` is true at every moment."""

    grant: Grant
    member: int
    engine: Engine
    sessions: Sessions
    tokens: "ChatTokens"
    limits: Limits
    on_turn: Callable[[Turn, Row], None]
    actor: str = ""
    asked: str = ""
    """The action that the environment has not answered yet."""
    turns: list[Turn] = field(default_factory=list)
    prompt: str = ""
    reward: float = 0.0
    conversation: "Conversation | None" = None
    started_s: float = field(default_factory=time.monotonic)

    async def play(self) -> Rollout:
        """Play to the end; every failure becomes a rollout that says so."""
        session: Session | None = None
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                with boundary(StopReason.ENV_ERROR):
                    session = await self.sessions.open(self.grant.task)
                    self.prompt = session.prompt
                rollout = self.ended(await self._converse(session))
        except RolloutFault as fault:
            rollout = self.ended(fault.stop, error=fault.text, fault=fault.outcome)
        except TimeoutError:
            error = f"the rollout took longer than rollout.timeout_s={self.limits.timeout_s:g}"
            rollout = self.ended(StopReason.TIMEOUT, error=error)
        finally:
            if session is not None:
                await self._close(session)
        return rollout

    async def _close(self, session: Session) -> None:
        """End the session; a failure changes nothing about a rollout that has ended."""
        try:
            with boundary(StopReason.ENV_ERROR):
                await session.close()
        except RolloutFault as fault:
            logger.warning("closing a session of %s failed: %s", self.grant.task.id, fault.text)

    def ended(self, stop: StopReason, *, error: str = "", fault: Outcome = Outcome.OK) -> Rollout:
        """The rollout so far, ended for `stop`."""
        task = self.grant.task
        has_verdict = not stop.is_fault and stop is not StopReason.CANCELLED
        rows = self.conversation.rows() if self.conversation is not None and has_verdict else []
        return Rollout(
            group_id=self.grant.group_id,
            member=self.member,
            attempt=self.grant.attempt,
            task_id=task.id,
            pool=task.pool,
            pool_version=task.pool_version,
            env=task.env,
            seed=task.seed,
            stop=stop,
            reward=self.reward if has_verdict else None,
            rows=rows,
            turns=self.turns,
            prompt=self.prompt,
            error=error,
            fault=fault,
            failed_action=self.asked if fault is not Outcome.OK else "",
            actor=self.actor,
            wall_s=time.monotonic() - self.started_s,
        )

    async def _converse(self, session: Session) -> StopReason:
        with boundary(StopReason.ENGINE_ERROR):
            conversation = self.tokens.conversation(session.prompt, session.tools)
        self.conversation = conversation
        stop = StopReason.MAX_TURNS
        for index in range(self.limits.max_turns):
            room = self.limits.max_context_tokens - len(conversation.ids)
            if room <= 0:
                return StopReason.CONTEXT_FULL
            begun = time.monotonic()
            sampling = self._sampling(index, min(room, self.limits.max_reply_tokens))
            with boundary(StopReason.ENGINE_ERROR):
                # Later turns go first: a rollout about to end frees its row and its session.
                reply = await self.engine.generate(conversation.ids, sampling, priority=-index)
                if reply.stop is EngineStop.ABORTED:
                    raise RolloutFault(StopReason.ENGINE_ERROR, "the engine aborted the request")
                text = conversation.reply(reply.token_ids, reply.logprobs, reply.spans)
            generated = time.monotonic()
            action = self.asked = toolcall.parse(text)
            with boundary(StopReason.ENV_ERROR):
                result = await session.step(action)
            self.asked = ""
            self.reward += result.reward
            turn = Turn(
                index=index,
                action=action,
                observation=result.observation,
                is_bad_call=result.is_bad_call,
                outcome=result.outcome,
                num_reply_tokens=len(reply.token_ids),
                oldest_version=min(span.version for span in reply.spans),
                generate_s=generated - begun,
                env_s=time.monotonic() - generated,
                reply=None if text == toolcall.render(action) else text,
            )
            self.turns.append(turn)
            self.on_turn(turn, Row.sampled(reply.token_ids, reply.logprobs, reply.spans))
            if result.terminated:
                return StopReason.ANSWERED
            if result.truncated:
                return StopReason.MAX_TURNS
            is_cut = reply.stop is EngineStop.LENGTH
            stop = StopReason.MAX_TOKENS if is_cut else StopReason.MAX_TURNS
            with boundary(StopReason.ENGINE_ERROR):
                conversation.observe(result.observation)
        return stop

    def _sampling(self, turn: int, max_tokens: int) -> Sampling:
        """The member's own stream of randomness, whatever else the engine runs."""
        seed = zlib.crc32(f"{self.grant.task.seed}/{self.member}/{turn}".encode())
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.grant.temperature,
            seed=seed,
            stop_token_ids=self.tokens.stop_token_ids,
        )
