"""Episodes and actors with a scripted engine: every way to stop, and faults that stay data."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from envpool.frames import Outcome
from envpool.session import EnvFault, StepResult
from envpool.task import Task
from rollout.actor import Actor
from rollout.engine import EngineError, EngineStop, Generation, UpdateMode, UpdateReport
from rollout.episode import Episode, Limits
from rollout.files import RolloutRow
from rollout.tokens import ChatTokens
from rollout.types import (
    EngineStats,
    Grant,
    Rollout,
    RolloutDone,
    Row,
    Sampling,
    Span,
    StopReason,
    Turn,
    TurnDone,
)
from rollout.weights import Manifest
from tests.fakes import FakePools, make_task

POLICY = Path(__file__).parents[2] / "configs" / "tiny_policy" / "policy"
LIMITS = Limits(max_turns=3, max_reply_tokens=16, max_context_tokens=200, timeout_s=5)


@pytest.fixture(scope="module")
def tokens() -> ChatTokens:
    return ChatTokens.load(POLICY)


class ScriptedEngine:
    """Says the same text every time; `None` never answers, an exception is raised."""

    def __init__(
        self, tokens: ChatTokens, text: str | Exception | None, *, cut: bool = False
    ) -> None:
        self._tokens = tokens
        self._text = text
        self._cut = cut
        self.version = 4
        self.num_parameters = 0
        self.pids: list[int] = []
        self.sampled: list[Sampling] = []
        self.prompts: list[list[int]] = []
        self.asked = asyncio.Event()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, priority: int = 0
    ) -> Generation:
        self.prompts.append(list(prompt_ids))
        self.sampled.append(sampling)
        self.asked.set()
        if self._text is None:
            await asyncio.Event().wait()
            raise AssertionError("nothing sets it")
        if isinstance(self._text, Exception):
            raise self._text
        ids = self._tokens.tokenizer.encode(self._text)
        stop = EngineStop.LENGTH
        if not self._cut:
            ids, stop = [*ids, self._tokens.stop_token_ids[0]], EngineStop.STOP
        return Generation(
            token_ids=np.array(ids, dtype=np.int32),
            logprobs=np.full(len(ids), -0.5, dtype=np.float32),
            spans=[Span(self.version, 0, len(ids))],
            stop=stop,
        )

    async def update_weights(self, manifest: Manifest, mode: UpdateMode) -> UpdateReport:
        self.version = manifest.version
        return UpdateReport(version=manifest.version, load_s=0, stall_s=0)

    def stats(self) -> EngineStats:
        return EngineStats(
            version=self.version,
            running=0,
            waiting=0,
            cached_rows=0,
            kv_used_frac=0,
            prompt_tokens=0,
            prefix_hit_tokens=0,
            sampled_tokens=0,
            recomputed_tokens=0,
            busy_s=0,
        )

    def take_busy(self) -> list[tuple[float, float]]:
        return [(1.0, 2.0)]

    async def close(self) -> None:
        return None


class ScriptedSession:
    """Answers each step with the next result, or raises it."""

    def __init__(self, results: Sequence[StepResult | Exception]) -> None:
        self.prompt = "Sum all numbers."
        self.tools: list[dict] = []
        self._results = list(results)
        self.actions: list[str] = []
        self.is_closed = False

    async def step(self, action: str) -> StepResult:
        self.actions.append(action)
        result = self._results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def close(self) -> None:
        self.is_closed = True


class OneSession(FakePools):
    """A pool that opens one prepared session."""

    def __init__(self, session: ScriptedSession | Exception) -> None:
        super().__init__()
        self._session = session

    async def open(self, task: Task) -> ScriptedSession:
        if isinstance(self._session, Exception):
            raise self._session
        return self._session


def result(observation: str = "5", reward: float = 0.0, *, end: bool = False) -> StepResult:
    return StepResult(
        observation=observation, reward=reward, terminated=end, truncated=False, is_bad_call=False
    )


CALL = '<tool_call>\n{"name": "get", "arguments": {"index": 0}}\n</tool_call>'
GRANT = Grant(group_id="g0", task=make_task(), members=[0])


async def play(
    tokens: ChatTokens,
    session: ScriptedSession | Exception,
    *,
    text: str | Exception | None = CALL,
    limits: Limits = LIMITS,
    cut: bool = False,
    journal: list[tuple[Turn, Row]] | None = None,
) -> Rollout:
    def on_turn(turn: Turn, reply: Row) -> None:
        if journal is not None:
            journal.append((turn, reply))

    episode = Episode(
        grant=GRANT,
        member=0,
        engine=ScriptedEngine(tokens, text, cut=cut),
        sessions=OneSession(session),
        tokens=tokens,
        limits=limits,
        on_turn=on_turn,
    )
    return await episode.play()


async def test_an_answer_ends_the_rollout_with_its_verdict(tokens: ChatTokens) -> None:
    session = ScriptedSession([result(), result("done", 1.0, end=True)])
    journal: list[tuple[Turn, Row]] = []
    rollout = await play(tokens, session, journal=journal)
    turns = [turn for turn, _ in journal]
    assert rollout.prompt == "Sum all numbers."
    assert (rollout.stop, rollout.reward) == (StopReason.ANSWERED, 1.0)
    assert session.actions == ['{"name": "get", "arguments": {"index": 0}}'] * 2
    assert [turn.index for turn in turns] == [0, 1] and turns == rollout.turns
    assert session.is_closed
    (row,) = rollout.rows
    assert row.mask.sum() == sum(turn.num_reply_tokens for turn in turns)
    assert np.all(row.logprobs[row.mask == 1] == -0.5) and not row.logprobs[row.mask == 0].any()
    assert rollout.oldest_version == 4


async def test_a_rollout_carries_what_its_policy_was_asked(tokens: ChatTokens) -> None:
    session = ScriptedSession([result("done", 1.0, end=True)])
    rollout = await play(tokens, session)
    assert rollout.prompt == session.prompt == "Sum all numbers."
    row = RolloutRow.of(rollout, config={}, group_size=1)
    assert msgspec.json.decode(msgspec.json.encode(row))["prompt"] == session.prompt
    never_opened = await play(tokens, EnvFault(Outcome.CRASHED, "no process"))
    assert never_opened.prompt == ""


@pytest.mark.parametrize(
    ("limits", "cut", "stop"),
    [
        (LIMITS, False, StopReason.MAX_TURNS),
        (LIMITS, True, StopReason.MAX_TOKENS),
        (
            Limits(max_turns=9, max_reply_tokens=16, max_context_tokens=40, timeout_s=5),
            False,
            StopReason.CONTEXT_FULL,
        ),
    ],
)
async def test_a_budget_that_runs_out_is_an_ordinary_stop(
    tokens: ChatTokens, limits: Limits, cut: bool, stop: StopReason
) -> None:
    rollout = await play(tokens, ScriptedSession([result()] * 9), limits=limits, cut=cut)
    assert (rollout.stop, rollout.reward) == (stop, 0.0)
    assert rollout.rows


@pytest.mark.parametrize(
    ("session", "text", "stop"),
    [
        (EnvFault(Outcome.CRASHED, "gone"), CALL, StopReason.ENV_ERROR),
        (EnvFault(Outcome.TIMEOUT, "slow"), CALL, StopReason.TIMEOUT),
        (ScriptedSession([EnvFault(Outcome.GRADER_ERROR, "bad")]), CALL, StopReason.GRADER_ERROR),
        (ScriptedSession([EnvFault(Outcome.TIMEOUT, "slow")]), CALL, StopReason.TIMEOUT),
        (ScriptedSession([KeyError("bug")]), CALL, StopReason.ENV_ERROR),
        (ScriptedSession([]), EngineError("no memory"), StopReason.ENGINE_ERROR),
        (ScriptedSession([]), ValueError("bug"), StopReason.ENGINE_ERROR),
    ],
)
async def test_a_fault_has_no_reward_and_no_row(
    tokens: ChatTokens,
    session: ScriptedSession | Exception,
    text: str | Exception,
    stop: StopReason,
) -> None:
    rollout = await play(tokens, session, text=text)
    assert rollout.stop is stop
    assert rollout.reward is None and rollout.rows == []
    assert rollout.error
    if isinstance(session, ScriptedSession):
        assert session.is_closed
    # Whom it blames: what the environment did, and at which action, or nobody there.
    is_blamed = isinstance(session, EnvFault) or stop in (
        StopReason.GRADER_ERROR,
        StopReason.TIMEOUT,
    )
    assert rollout.is_env_fault is is_blamed
    is_step = is_blamed and isinstance(session, ScriptedSession)
    assert rollout.failed_action == (
        '{"name": "get", "arguments": {"index": 0}}' if is_step else ""
    )


async def test_a_call_that_its_session_survived_is_told_from_a_wrong_one(
    tokens: ChatTokens,
) -> None:
    hung = msgspec.structs.replace(result(), is_bad_call=True, outcome=Outcome.TIMEOUT)
    rollout = await play(tokens, ScriptedSession([hung, result(), result("5", 1.0, end=True)]))
    assert [turn.outcome for turn in rollout.turns] == [Outcome.TIMEOUT, Outcome.OK, Outcome.OK]
    assert rollout.faulty_actions == [rollout.turns[0].action] and not rollout.is_env_fault


async def test_a_rollout_past_its_deadline_is_a_timeout(tokens: ChatTokens) -> None:
    session = ScriptedSession([])
    limits = Limits(max_turns=3, max_reply_tokens=16, max_context_tokens=200, timeout_s=0.05)
    rollout = await play(tokens, session, text=None, limits=limits)
    assert rollout.stop is StopReason.TIMEOUT and "rollout.timeout_s" in rollout.error
    assert not rollout.is_env_fault and not rollout.failed_action
    assert session.is_closed


async def test_the_journal_rebuilds_the_conversation_token_for_token(tokens: ChatTokens) -> None:
    session = ScriptedSession([result("7"), result("8"), result("no", end=True)])
    journal: list[tuple[Turn, Row]] = []
    rollout = await play(tokens, session, journal=journal)
    rebuilt = tokens.conversation(session.prompt, session.tools)
    for turn, reply in journal[:-1]:
        rebuilt.reply(reply.token_ids, reply.logprobs, reply.spans)
        rebuilt.observe(turn.observation)
    last = journal[-1][1]
    rebuilt.reply(last.token_ids, last.logprobs, last.spans)
    assert len(journal) == 3 and rebuilt.rows() == rollout.rows
    assert [turn.action for turn, _ in journal] == session.actions


async def test_a_rollout_is_played_as_its_grant_says_and_says_whose_it_is(
    tokens: ChatTokens,
) -> None:
    task = make_task(env="find_max", pool_version="w")
    grant = Grant(group_id="g7", task=task, members=[3], attempt=1, temperature=0.5)
    engine = ScriptedEngine(tokens, CALL)
    bad = StepResult(
        observation="no", reward=0.25, terminated=False, truncated=False, is_bad_call=True
    )
    cut = StepResult(
        observation="end", reward=0.5, terminated=False, truncated=True, is_bad_call=False
    )
    rollout = await Episode(
        grant=grant,
        member=3,
        engine=engine,
        sessions=OneSession(ScriptedSession([bad, cut])),
        tokens=tokens,
        limits=LIMITS,
        on_turn=lambda _turn, _reply: None,
        actor="actor-5",
    ).play()
    assert {sampling.temperature for sampling in engine.sampled} == {0.5}
    assert all(one.stop_token_ids == tokens.stop_token_ids for one in engine.sampled)
    assert (rollout.group_id, rollout.member, rollout.attempt) == ("g7", 3, 1)
    assert (rollout.env, rollout.pool_version, rollout.seed) == ("find_max", "w", task.seed)
    assert (rollout.stop, rollout.reward) == (StopReason.MAX_TURNS, 0.75)
    assert [turn.is_bad_call for turn in rollout.turns] == [True, False]
    assert {turn.oldest_version for turn in rollout.turns} == {engine.version}
    assert (rollout.actor, rollout.prompt) == ("actor-5", "Sum all numbers.")


async def test_the_tasks_seed_moves_every_stream(tokens: ChatTokens) -> None:
    seeds = []
    for seed in (1, 2):
        engine = ScriptedEngine(tokens, CALL)
        task = msgspec.structs.replace(make_task(), seed=seed)
        await Episode(
            grant=Grant(group_id="g0", task=task, members=[0]),
            member=0,
            engine=engine,
            sessions=OneSession(ScriptedSession([result()] * 3)),
            tokens=tokens,
            limits=LIMITS,
            on_turn=lambda _turn, _reply: None,
        ).play()
        seeds += [sampling.seed for sampling in engine.sampled]
    assert len(set(seeds)) == 6


async def test_members_and_turns_have_streams_of_their_own(tokens: ChatTokens) -> None:
    seeds = set()
    for member in (0, 1):
        engine = ScriptedEngine(tokens, CALL)
        episode = Episode(
            grant=GRANT,
            member=member,
            engine=engine,
            sessions=OneSession(ScriptedSession([result()] * 3)),
            tokens=tokens,
            limits=LIMITS,
            on_turn=lambda _turn, _reply: None,
        )
        await episode.play()
        seeds |= {sampling.seed for sampling in engine.sampled}
    assert len(seeds) == 6


async def test_each_prompt_extends_the_one_before_by_what_was_sampled(tokens: ChatTokens) -> None:
    engine = ScriptedEngine(tokens, CALL)
    episode = Episode(
        grant=GRANT,
        member=0,
        engine=engine,
        sessions=OneSession(ScriptedSession([result("7"), result("8"), result()])),
        tokens=tokens,
        limits=LIMITS,
        on_turn=lambda _turn, _reply: None,
    )
    await episode.play()
    sampled = [*tokens.tokenizer.encode(CALL), tokens.stop_token_ids[0]]
    for before, after in zip(engine.prompts, engine.prompts[1:], strict=False):
        assert after[: len(before) + len(sampled)] == [*before, *sampled]


async def start_actor(
    tokens: ChatTokens, engine: ScriptedEngine, session: ScriptedSession
) -> Actor:
    return await Actor.start(
        name="actor-0", engine=engine, sessions=OneSession(session), tokens=tokens, limits=LIMITS
    )


async def test_an_actor_streams_turns_then_the_rollout(tokens: ChatTokens) -> None:
    actor = await start_actor(
        tokens, ScriptedEngine(tokens, CALL), ScriptedSession([result("", 1.0, end=True)])
    )
    await actor.play([GRANT])
    seen = []
    while not any(isinstance(event, RolloutDone) for event in seen):
        seen += await actor.events()
    kinds = [type(event) for event in seen if isinstance(event, TurnDone | RolloutDone)]
    assert kinds == [TurnDone, RolloutDone]
    assert any(isinstance(event, EngineStats) for event in seen)
    await actor.close()


async def test_a_cancelled_group_ends_as_cancelled_and_frees_its_session(
    tokens: ChatTokens,
) -> None:
    session = ScriptedSession([])
    engine = ScriptedEngine(tokens, None)
    actor = await start_actor(tokens, engine, session)
    await actor.play([GRANT])
    await engine.asked.wait()
    await actor.cancel(["g0", "unknown"])
    seen = await actor.events()
    (done,) = [event for event in seen if isinstance(event, RolloutDone)]
    assert done.rollout.stop is StopReason.CANCELLED and done.rollout.reward is None
    assert session.is_closed
    await actor.close()


async def test_closing_an_actor_ends_what_it_plays(tokens: ChatTokens) -> None:
    session = ScriptedSession([])
    engine = ScriptedEngine(tokens, None)
    actor = await start_actor(tokens, engine, session)
    await actor.play([GRANT])
    await engine.asked.wait()
    await actor.close()
    assert session.is_closed


async def test_a_member_cancelled_before_it_began_still_ends(tokens: ChatTokens) -> None:
    actor = await start_actor(tokens, ScriptedEngine(tokens, None), ScriptedSession([]))
    await actor.play([GRANT])
    await actor.cancel(["g0"])  # before its task had its first step
    (done,) = [event for event in await actor.events() if isinstance(event, RolloutDone)]
    assert done.rollout.stop is StopReason.CANCELLED
    await actor.close()


async def test_an_actor_that_broke_says_so_after_what_it_had_to_say(tokens: ChatTokens) -> None:
    engine = ScriptedEngine(tokens, CALL)
    actor = await start_actor(tokens, engine, ScriptedSession([result("", 1.0, end=True)]))
    await actor.play([GRANT])
    assert actor._members is not None

    async def bug() -> None:
        raise ZeroDivisionError("a bug in a member's task")

    actor._members.create_task(bug())

    async def listen() -> None:
        while True:
            await actor.events()

    with pytest.raises(ExceptionGroup, match="unhandled"):
        async with asyncio.timeout(5):
            await listen()


class StubbornSession(ScriptedSession):
    """Its end fails."""

    async def close(self) -> None:
        await super().close()
        raise OSError("no descriptor")


async def test_a_session_whose_end_fails_takes_no_verdict_away(tokens: ChatTokens) -> None:
    session = StubbornSession([result("", 1.0, end=True)])
    rollout = await play(tokens, session)
    assert (rollout.stop, rollout.reward) == (StopReason.ANSWERED, 1.0)
    assert session.is_closed
