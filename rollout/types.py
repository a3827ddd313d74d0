"""The records that cross processes: `Turn`, `Row`, `Rollout`, `Group`, and how each may end.

Long per-token arrays travel as packed bytes with numpy views. Nothing here knows torch, ray or
transformers. A faulted rollout has `reward=None`: a fault never becomes a number to train on.
"""

from enum import StrEnum

import msgspec
import numpy as np
import numpy.typing as npt

from envpool.frames import Outcome
from envpool.task import Task
from rollout.lineage import Lineage
from rollout.weights import Manifest

# Version of every record and file format written by a run.
FORMAT = 1


class StopReason(StrEnum):
    """How a rollout ended. The last four are faults: no reward, never trained on."""

    ANSWERED = "answered"
    """The environment terminated: an answer was given and graded."""
    MAX_TURNS = "max_turns"
    """The turn budget ran out; the environment's verdict stands."""
    MAX_TOKENS = "max_tokens"
    """A reply hit its token budget on the last turn; the environment's verdict stands."""
    CONTEXT_FULL = "context_full"
    """The next turn would not fit the context; the environment's verdict stands."""
    CANCELLED = "cancelled"
    """Stopped by the coordinator: its result can no longer be used."""
    ENGINE_ERROR = "engine_error"
    """The engine failed while generating."""
    ENV_ERROR = "env_error"
    """The environment's own code or process failed."""
    GRADER_ERROR = "grader_error"
    """The verdict could not be computed."""
    TIMEOUT = "timeout"
    """An environment step or the whole rollout passed its deadline."""

    @property
    def is_fault(self) -> bool:
        return self in _FAULTS

    @property
    def is_truncated(self) -> bool:
        """Whether a budget cut the rollout off."""
        return self in _TRUNCATED


_TRUNCATED = frozenset({StopReason.MAX_TURNS, StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL})
_FAULTS = frozenset(
    {
        StopReason.ENGINE_ERROR,
        StopReason.ENV_ERROR,
        StopReason.GRADER_ERROR,
        StopReason.TIMEOUT,
    }
)


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Positions `start <= i < end` of a row were sampled by weights `version`."""

    version: int
    start: int
    end: int
    mixed_kv: bool = False
    """Sampled on a cache that older weights filled (update mode `keep`)."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One token sequence to train on. `T` tokens; position i of each array is token i.

    `spans` cover exactly the positions whose mask is 1, in order.
    """

    token_ids_bytes: bytes
    logprobs_bytes: bytes
    mask_bytes: bytes
    spans: list[Span]

    @property
    def token_ids(self) -> npt.NDArray[np.int32]:
        """[T] what the engine saw and sampled, never re-encoded."""
        return np.frombuffer(self.token_ids_bytes, dtype=np.int32)

    @property
    def logprobs(self) -> npt.NDArray[np.float32]:
        """[T] log-prob of the token under the distribution it was sampled from; 0 where mask is 0."""
        return np.frombuffer(self.logprobs_bytes, dtype=np.float32)

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """[T] 1 exactly where the token was sampled by the policy."""
        return np.frombuffer(self.mask_bytes, dtype=np.uint8)

    @property
    def oldest_version(self) -> int | None:
        """Oldest version among the trained tokens, None when the row has none."""
        return min((span.version for span in self.spans), default=None)

    @classmethod
    def pack(
        cls,
        token_ids: npt.ArrayLike,
        logprobs: npt.ArrayLike,
        mask: npt.ArrayLike,
        spans: list[Span],
    ) -> "Row":
        """Pack three [T] sequences; raises ValueError when their lengths or the spans disagree."""
        ids = np.ascontiguousarray(token_ids, dtype=np.int32)
        lps = np.ascontiguousarray(logprobs, dtype=np.float32)
        bits = np.ascontiguousarray(mask, dtype=np.uint8)
        if not ids.shape == lps.shape == bits.shape:
            raise ValueError(f"row lengths differ: {ids.shape}, {lps.shape}, {bits.shape}")
        covered = np.zeros_like(bits)
        for span in spans:
            covered[span.start : span.end] += 1
        if not np.array_equal(covered, bits):
            raise ValueError("spans do not cover exactly the masked tokens")
        return cls(
            token_ids_bytes=ids.tobytes(),
            logprobs_bytes=lps.tobytes(),
            mask_bytes=bits.tobytes(),
            spans=spans,
        )

    @classmethod
    def sampled(
        cls,
        token_ids: npt.NDArray[np.int32],
        logprobs: npt.NDArray[np.float32],
        spans: list[Span],
    ) -> "Row":
        """Pack a reply, [N] tokens that were all sampled; raises ValueError as `pack` does."""
        count = len(token_ids)
        if count != len(logprobs):
            raise ValueError(f"row lengths differ: {count}, {len(logprobs)}")
        ends = [0, *(span.end for span in spans)]
        if ends[-1] != count or any(
            span.start != end for span, end in zip(spans, ends, strict=False)
        ):
            raise ValueError("spans do not cover exactly the masked tokens")
        return cls(
            token_ids_bytes=token_ids.tobytes(),
            logprobs_bytes=logprobs.tobytes(),
            mask_bytes=b"\1" * count,
            spans=spans,
        )


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One model reply and the environment's answer, as the journal and the log keep it."""

    index: int
    action: str
    """What was sent to the environment: the text of the tool call."""
    observation: str
    is_bad_call: bool
    """The call was malformed, unknown or had wrong arguments."""
    num_reply_tokens: int
    oldest_version: int
    """Oldest version that sampled a token of this reply."""
    generate_s: float
    env_s: float
    outcome: Outcome = Outcome.OK
    """How the call went where it ended the environment's process, and was answered all the same."""
    reply: str | None = None
    """All that the model said; None where that is the call and nothing else, as `toolcall.render` has it."""


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at a task by one member of a group, ended for `stop`."""

    format: int = FORMAT
    group_id: str
    member: int
    attempt: int
    """0, or 1 when the member was retried after a fault."""
    task_id: str
    pool: str
    pool_version: str
    env: str
    seed: int
    stop: StopReason
    reward: float | None
    """The environment's verdict; None exactly when the rollout faulted or was cancelled."""
    rows: list[Row]
    turns: list[Turn]
    prompt: str = ""
    """The task in words, as the policy got it; empty when no session opened."""
    error: str = ""
    """Type and message of the fault, and a traceback where there is one."""
    fault: Outcome = Outcome.OK
    """How the environment failed; OK where it was not that which ended the rollout."""
    failed_action: str = ""
    """The action at which it did; empty when it was none."""
    actor: str = ""
    wall_s: float = 0.0

    def __post_init__(self) -> None:
        has_verdict = not self.stop.is_fault and self.stop is not StopReason.CANCELLED
        if has_verdict != (self.reward is not None):
            raise ValueError(f"a rollout that stopped for {self.stop} has reward {self.reward}")

    @property
    def is_env_fault(self) -> bool:
        """Whether the environment failed, and not what plays it."""
        return self.fault not in (Outcome.OK, Outcome.CANCELLED)

    @property
    def faulty_actions(self) -> list[str]:
        """Actions that the environment did not survive, answered or not."""
        survived = [turn.action for turn in self.turns if turn.outcome is not Outcome.OK]
        return [*survived, self.failed_action] if self.failed_action else survived

    @property
    def oldest_version(self) -> int | None:
        """Oldest version among the trained tokens of all rows."""
        versions = [row.oldest_version for row in self.rows]
        return min((v for v in versions if v is not None), default=None)

    @property
    def num_versions(self) -> int:
        """How many different versions sampled its tokens."""
        return len({span.version for row in self.rows for span in row.spans})

    @property
    def num_sampled_tokens(self) -> int:
        return sum(span.end - span.start for row in self.rows for span in row.spans)


class LagError(AssertionError):
    """Something past the lag bound was about to be trained on: a bug, never a condition to handle."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. Only what a trainer can reproduce: temperature, nothing else."""

    max_tokens: int
    temperature: float = 1.0
    """0 means greedy."""
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    """Generation ends with the first of these, which is part of the reply."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """An order to an actor: play `members` of one group. Evaluation uses the same order."""

    group_id: str
    task: Task
    members: list[int]
    attempt: int = 0
    temperature: float = 1.0
    is_eval: bool = False


class TurnDone(msgspec.Struct, frozen=True, kw_only=True, tag="turn"):
    """Actor to journal: a turn of a running member is complete.

    The turns of a member are all it takes to play on elsewhere: the replies and observations give the
    conversation token for token, the actions the environment.
    """

    group_id: str
    member: int
    attempt: int
    turn: Turn
    reply: Row
    """The sampled tokens of this turn alone; the mask is 1 throughout."""


class RolloutDone(msgspec.Struct, frozen=True, kw_only=True, tag="rollout"):
    """Actor to journal: a member ended."""

    rollout: Rollout


class Busy(msgspec.Struct, frozen=True, kw_only=True, tag="busy"):
    """`who` computed from `start_s` to `end_s` on the node's monotonic clock."""

    who: str
    start_s: float
    end_s: float


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """What an engine says of itself since it started."""

    version: int
    running: int
    waiting: int
    cached_rows: int
    kv_used_frac: float
    prompt_tokens: int
    prefix_hit_tokens: int
    sampled_tokens: int
    recomputed_tokens: int
    busy_s: float
    cpu_s: float = 0.0
    """CPU seconds of its process, all threads."""


ActorEvent = TurnDone | RolloutDone | Busy | EngineStats


class TrainGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group as the learner gets it: rewards [G] and the rows of each rollout."""

    group_id: str
    pool: str
    rollouts: list[Rollout]


class TrainBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What one optimizer step consumes. `version` is the one its gradient is computed at."""

    step: int
    version: int
    publish_version: int | None
    """Version to publish after the step; None when this step publishes nothing."""
    groups: list[TrainGroup]
    max_lag: int
    lineage: Lineage = Lineage()
    rollback: str = ""
    """Directory of a checkpoint whose weights replace the learner's before this step; empty: none."""


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the learner says after an optimizer step.

    `metrics` are finite floats under the keys `loss/ optim/ kl/ perf/ time/`.
    """

    step: int
    version: int
    """The version its gradient was computed at."""
    manifest: Manifest | None
    """The version it published, if it published one within the step."""
    publishing: int | None = None
    """The version that is being published while the next step is trained."""
    metrics: dict[str, float]
    busy: list[Busy]


class RankPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the learner's ranks a process is, and where it meets the others."""

    rank: int
    size: int
    address: str
    """Of rank 0's node."""
    port: int
    listening: int | None = None
    """In rank 0's process alone: the socket that listens there."""


def encode(message: msgspec.Struct | list[ActorEvent]) -> bytes:
    """Pack a record, or a list of events, for another process."""
    return _ENCODER.encode(message)


_ENCODER = msgspec.msgpack.Encoder()
decode_events = msgspec.msgpack.Decoder(list[ActorEvent]).decode
decode_grant = msgspec.msgpack.Decoder(Grant).decode
decode_batch = msgspec.msgpack.Decoder(TrainBatch).decode
decode_report = msgspec.msgpack.Decoder(StepReport).decode
