"""`EndpointPlayer`: a model at an OpenAI-compatible endpoint plays sessions of a pool.

    prompt, tools -> chat -> tool calls, or a call in text -> environment -> observation -> chat -> ...

As in training, a reply without a call goes to the environment as it is, which answers with an error that
the model can read.
"""

import asyncio
import logging
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from envpool.env import call_text
from envpool.task import Task
from rollout import toolcall
from rollout.episode import Limits, Session, Sessions
from rollout.faults import RolloutFault, boundary
from rollout.types import StopReason
from synth.chat import (
    Chat,
    ContextFull,
    EndpointError,
    Function,
    Message,
    QuestionError,
    Said,
    TriesFailed,
)
from synth.player import MAX_ERROR_CHARS, Played, PlayerError

logger = logging.getLogger(__name__)


class Answered(NamedTuple):
    """An action of a reply, and the tool call that it came as; no id where it came as text."""

    action: str
    id: str = ""


class EndpointPlayer:
    """A `synth.player.Player`. Close it; it closes its `Chat`."""

    def __init__(
        self,
        chat: Chat,
        model: str,
        sessions: Sessions,
        limits: Limits,
        *,
        temperature: float = 1.0,
    ) -> None:
        """Of the limits, `max_turns` bounds calls, and `max_context_tokens` what the endpoint counts."""
        self.name = model
        self._chat = chat
        self._sessions = sessions
        self._limits = limits
        self._temperature = temperature

    async def play(self, task: Task, sample: int) -> Played:
        """One episode. Raises PlayerError."""
        return await play_endpoint(
            self._chat,
            self.name,
            self._sessions,
            task,
            sample,
            limits=self._limits,
            temperature=self._temperature,
        )

    async def close(self) -> None:
        await self._chat.close()


async def play_endpoint(
    chat: Chat,
    model: str,
    sessions: Sessions,
    task: Task,
    sample: int,
    *,
    limits: Limits,
    temperature: float = 1.0,
) -> Played:
    """Play one episode of a task. What fails is in the result; raises PlayerError alone."""
    episode = _Episode(chat, model, task, sample, limits, temperature)
    try:
        async with asyncio.timeout(limits.timeout_s):
            with boundary(StopReason.ENV_ERROR):
                session = await sessions.open(task)
            try:
                stop = await episode.converse(session)
            finally:
                await _close(session, task)
    except RolloutFault as fault:
        return episode.failed(fault.stop, fault.text)
    except EndpointError as error:
        raise PlayerError(str(error)) from error
    except (QuestionError, TriesFailed) as error:
        return episode.failed(StopReason.ENGINE_ERROR, str(error))
    except TimeoutError:
        error = f"the episode took longer than {limits.timeout_s:g} s"
        return episode.failed(StopReason.TIMEOUT, error)
    return Played(stop=stop, reward=episode.reward, calls=episode.calls)


async def _close(session: Session, task: Task) -> None:
    """End the session; a failure changes nothing about an episode that has ended."""
    try:
        with boundary(StopReason.ENV_ERROR):
            await session.close()
    except RolloutFault as fault:
        logger.warning("closing a session of %s failed: %s", task.id, fault.text)


class _Episode:
    """A conversation and what came of it so far."""

    def __init__(
        self, chat: Chat, model: str, task: Task, sample: int, limits: Limits, temperature: float
    ) -> None:
        self._chat = chat
        self._model = model
        self._task = task
        self._sample = sample
        self._limits = limits
        self._temperature = temperature
        self._messages: list[Message] = []
        self.reward = 0.0
        self.calls = 0

    def failed(self, stop: StopReason, error: str) -> Played:
        return Played(
            stop=stop, reward=None, calls=self.calls, error=error[-MAX_ERROR_CHARS:].strip()
        )

    async def converse(self, session: Session) -> StopReason:
        """Play to the end. Raises RolloutFault, QuestionError, TriesFailed, EndpointError."""
        self._messages.append({"role": "user", "content": session.prompt})
        while self.calls < self._limits.max_turns:
            seed = f"{self._task.seed}/{self._sample}/{self.calls}"
            try:
                reply = await self._chat.ask(
                    {
                        "model": self._model,
                        "messages": self._messages,
                        "tools": session.tools,
                        "temperature": self._temperature,
                        "max_tokens": self._limits.max_reply_tokens,
                        "seed": zlib.crc32(seed.encode()) >> 1,
                    }
                )
            except ContextFull:
                if not self.calls:
                    # Nothing was played: a setting is wrong, e.g. a longer reply than there is room for.
                    raise
                return StopReason.CONTEXT_FULL
            if await self._act(session, reply.said):
                return StopReason.ANSWERED
            if (
                reply.tokens.prompt_tokens + reply.tokens.completion_tokens
                >= self._limits.max_context_tokens
            ):
                return StopReason.CONTEXT_FULL
        return StopReason.MAX_TURNS

    async def _act(self, session: Session, said: Said) -> bool:
        """Carry out what a reply asks for, one call after the other; whether that ended the episode."""
        actions = _actions(said)
        self._messages.append(_as_message(said, actions))
        for action in actions:
            if self.calls == self._limits.max_turns:
                return False
            with boundary(StopReason.ENV_ERROR):
                result = await session.step(action.action)
            self.calls += 1
            self.reward += result.reward
            if result.terminated or result.truncated:
                return True
            self._messages.append(_observation(result.observation, action))
        return False


def _actions(said: Said) -> list[Answered]:
    """The calls of a reply, at least one: what is no call is one that the environment refuses."""
    if said.tool_calls:
        return [
            Answered(_action(call.function), call.id or f"call_{index}")
            for index, call in enumerate(said.tool_calls)
        ]
    return [Answered(toolcall.parse(said.content or said.refusal or ""))]


def _action(function: Function) -> str:
    arguments = _arguments(function)
    if arguments is not None:
        return call_text(function.name, arguments)
    name = msgspec.json.encode(function.name).decode()
    return f'{{"name": {name}, "arguments": {function.arguments}}}'


def _arguments(function: Function) -> dict[str, Any] | None:
    """The arguments of a call; None where they are no JSON object."""
    if isinstance(function.arguments, dict):
        return function.arguments
    try:
        return msgspec.json.decode(function.arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _as_message(said: Said, actions: Sequence[Answered]) -> Message:
    """A reply as the endpoint gets it back."""
    message: Message = {"role": "assistant", "content": said.content or said.refusal or ""}
    if said.tool_calls:
        message["tool_calls"] = [
            {
                "id": action.id,
                "type": "function",
                # Servers that read arguments refuse a conversation in which they are no JSON.
                "function": {
                    "name": call.function.name,
                    "arguments": msgspec.json.encode(_arguments(call.function) or {}).decode(),
                },
            }
            for action, call in zip(actions, said.tool_calls, strict=True)
        ]
    return message


def _observation(text: str, action: Answered) -> Message:
    if action.id:
        return {"role": "tool", "tool_call_id": action.id, "content": text}
    # A message of the role `tool` must answer a call that the endpoint has seen.
    return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
