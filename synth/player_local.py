"""`LocalPlayer`: a model directory, played by the embedded engine as in training and evaluation."""

import asyncio
from pathlib import Path

from configs.schema import EngineSection
from envpool.task import Task
from rollout.engine import Engine, EngineError
from rollout.engine_local import LocalEngine
from rollout.episode import Episode, Limits, Sessions
from rollout.tokens import ChatTokens
from rollout.types import Grant
from synth.player import MAX_ERROR_CHARS, Played, PlayerError


class LocalPlayer:
    """A `synth.player.Player`. Made by `start`; close it."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        tokens: ChatTokens,
        sessions: Sessions,
        limits: Limits,
        temperature: float,
    ) -> None:
        self.name = name
        self._engine = engine
        self._tokens = tokens
        self._sessions = sessions
        self._limits = limits
        self._temperature = temperature

    @classmethod
    async def start(
        cls,
        model: str | Path,
        sessions: Sessions,
        limits: Limits,
        *,
        temperature: float = 1.0,
        dtype: str = "float32",
        engine: EngineSection | None = None,
    ) -> "LocalPlayer":
        """Load the model. Raises PlayerError where it cannot be played."""
        try:
            tokens = await asyncio.to_thread(ChatTokens.load, model)
            started = await LocalEngine.start(
                model,
                dtype=dtype,
                section=engine or EngineSection(),
                max_context_tokens=limits.max_context_tokens,
            )
        except (ValueError, EngineError) as error:
            raise PlayerError(f"model {str(model)!r} cannot be played: {error}") from error
        return cls(str(model), started, tokens, sessions, limits, temperature)

    async def play(self, task: Task, sample: int) -> Played:
        """One episode; an engine that failed fails every episode after it."""
        grant = Grant(
            group_id=f"pass_rate/{task.id}",
            task=task,
            members=[sample],
            temperature=self._temperature,
            is_eval=True,
        )
        episode = Episode(
            grant=grant,
            member=sample,
            engine=self._engine,
            sessions=self._sessions,
            tokens=self._tokens,
            limits=self._limits,
            on_turn=lambda _turn, _row: None,
        )
        rollout = await episode.play()
        return Played(
            stop=rollout.stop,
            reward=rollout.reward,
            calls=len(rollout.turns),
            error=rollout.error[-MAX_ERROR_CHARS:],
        )

    async def close(self) -> None:
        await self._engine.close()
