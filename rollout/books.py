"""What the coordinator writes down: rows of ended rollouts, events, and the values of each step.

Decides nothing. One `Books` per run.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from configs.schema import AlarmSection
from rollout.buffer import Group
from rollout.collapse import Collapse
from rollout.evaluate import Evaluation
from rollout.fault_log import Faults
from rollout.files import BusySpan, Flushed, Mark, RolloutRow, RunFiles, TrainedStep
from rollout.ledger import GroupState
from rollout.metrics import Values, Window, trained_values
from rollout.types import Busy, Rollout, StepReport

# (group id, member) -> lag of the member's oldest trained token.
Lags = Mapping[tuple[str, int], int]


# Ended rollouts that are kept for whoever asks for the newest.
RECENT_ROLLOUTS = 200


class Books:
    """Records of one run."""

    def __init__(self, files: RunFiles, *, clock: Callable[[], float], alarm: AlarmSection) -> None:
        self._files = files
        self._clock = clock
        self._faults = Faults()
        self._window = Window()
        self.collapse = Collapse(alarm)
        """Whether the run has collapsed, by the steps so far."""
        self._step = 0
        self._lags: Lags = {}
        self._step_values: Values = {}
        self.lag_max = 0
        """Largest lag of a trained rollout so far."""
        self.recent: deque[RolloutRow] = deque(maxlen=RECENT_ROLLOUTS)
        """The rows written last, oldest first."""
        self.last_reward: float | None = None
        """Mean reward of what ended before the last step."""

    def begin_training(self) -> None:
        """From here on the event log shows the training phase."""
        self._window = Window()
        self._files.event(Mark(name="train_begin", at_s=self._clock()))

    def end_training(self) -> None:
        """The training phase is over."""
        self._files.event(Mark(name="train_end", at_s=self._clock()))

    def busy(self, busy: Busy) -> None:
        """Somebody computed."""
        self._files.event(BusySpan(who=busy.who, start_s=busy.start_s, end_s=busy.end_s))

    def loop_lag(self, seconds: float) -> None:
        """The event loop was late."""
        self._window.add_loop_lag(seconds)

    def flush(self) -> Flushed:
        """Ask for everything so far to be on disk."""
        return self._files.flush()

    def ended(self, rollout: Rollout) -> None:
        """A member ended; a fault is said aloud, the same one a few times."""
        if rollout.stop.is_fault:
            self._faults.say(rollout)

    def evaluated(self, evaluation: Evaluation, rollout: Rollout) -> None:
        """An evaluation's rollout came back."""
        self._files.evaluation(evaluation.label, evaluation.row(rollout), rollout.rows)

    def scored(self, group: Group) -> None:
        """Every member of a group ended."""
        self._window.add_scored(list(group.done.values()))
        self._window.add_pool(group.task.pool, group.rollouts)

    def group_ended(self, group: Group) -> int:
        """Write the rows of an ended group, whatever its end; returns how many."""
        self._window.add_end(group.state)
        rollouts = [*group.rollouts, *group.cancelled_members()]
        is_trained = group.state is GroupState.TRAINED
        for rollout in rollouts:
            has_lag = is_trained and rollout.reward is not None
            row = RolloutRow.of(
                rollout,
                config=group.task.config,
                group_size=group.size,
                state=group.state,
                step=self._step if is_trained else None,
                lag=self._lags[group.id, rollout.member] if has_lag else None,
            )
            self._files.rollout(row, rollout.rows)
            self.recent.append(row)
        return len(rollouts)

    def trained(self, report: StepReport, batch: Sequence[Group], lags: Lags) -> None:
        """An optimizer step consumed `batch`; comes before its groups end."""
        self._step = report.step
        self._lags = lags
        self.lag_max = max(self.lag_max, *lags.values())
        self._files.event(
            TrainedStep(
                step=report.step,
                version=report.version,
                groups=[group.id for group in batch],
                at_s=self._clock(),
            )
        )
        for busy in report.busy:
            self.busy(busy)
        rollouts = [rollout for group in batch for rollout in group.trainable]
        self._step_values = trained_values(rollouts, list(lags.values())) | report.metrics

    def take_values(self) -> Values:
        """The values of the step just trained, and of what ended since the one before."""
        window, self._window = self._window, Window()
        values = window.values() | self._step_values
        # No group may have been scored since the last step: the batch was queued before.
        if self.last_reward is not None:
            values.setdefault("reward/all_mean", self.last_reward)
        if "reward/all_mean" in values:
            self.last_reward = float(values["reward/all_mean"])
        return values | self.collapse.stepped(self._step, values)
