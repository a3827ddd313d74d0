"""The driver's one loop: who plays what, what is trained when, and when weights change.

    curriculum -- tasks --> [feed] -- grants --> actors
                                                   | turns, rollouts
    replay queue <---------- [listen, one per actor] <--+
         | batch
         +--> [train: the clock] --> learner -- version --> [sync] --> engines

Each bracket is a stage: a coroutine with one reason to wake. `train` is finite; everything else is
endless, and a stage that raises or returns ends the run. This module imports neither ray, torch nor
transformers: it reaches actors and learner through `rollout/ports.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from configs.schema import RunConfig
from envpool.source import Source
from envpool.task import PoolKey, Task
from rollout.books import Books
from rollout.buffer import Group, ReplayQueue
from rollout.curriculum import Curriculum
from rollout.desk import Desk
from rollout.endings import Endings
from rollout.evaluate import Evaluation, doing, versions_of
from rollout.evaluator import Evaluator
from rollout.feed import Feed
from rollout.files import RunFiles
from rollout.fleet import Fleet
from rollout.gate import Gate
from rollout.handover import Handover
from rollout.ledger import GroupState, Ledger
from rollout.metrics import MetricsWriter, Values, terminal_line
from rollout.pools import Pools, PoolState, Version
from rollout.ports import ActorPort, LearnerPort
from rollout.quarantine import Quarantine
from rollout.refusals import Refused
from rollout.resume import Resumed
from rollout.saving import Saver
from rollout.scores import Scores
from rollout.status import PoolStatus, Status
from rollout.step_time import Spent, StepTime
from rollout.supervise import supervise
from rollout.types import ActorEvent, Busy, EngineStats, RolloutDone, StepReport, TurnDone
from rollout.untouched import trained_ids
from rollout.watchdog import Watchdog

logger = logging.getLogger(__name__)

# How often the loop's own lateness and the run's progress are looked at.
WATCH_PERIOD_S = 0.5


class Coordinator:
    """Runs evaluation, training, evaluation; the live counterpart of the files of a run."""

    def __init__(
        self,
        *,
        config: RunConfig,
        run_dir: Path,
        sources: Mapping[str, Source],
        evaluation_sets: Mapping[str, list[Task]],
        actors: Mapping[str, ActorPort],
        learner: LearnerPort | None,
        files: RunFiles,
        metrics: MetricsWriter,
        clock: Callable[[], float],
        resumed: Resumed | None = None,
        evaluator: Evaluator | None = None,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._evaluation_sets = dict(evaluation_sets)
        self._actors = dict(actors)
        self._fleet = Fleet(
            actors,
            members_each=config.engine.max_running,
            deadline_s=config.weights.deadline_s,
            version=resumed.version if resumed else 0,
            clock=clock,
            send=learner.send if learner else None,
        )
        self._handover = Handover(
            self._fleet,
            learner,
            version=resumed.version if resumed else 0,
            deadline_s=config.weights.deadline_s,
            on_written=evaluator.offer if evaluator else lambda _: None,
            on_held=self._on_held,
        )
        self._learner = learner
        self._metrics = metrics
        self._clock = clock
        self._resumed = resumed
        self._evaluator = evaluator
        self._started_s = clock() - (resumed.snapshot.wall_s if resumed else 0.0)
        rollout = config.rollout
        self.ledger = Ledger(sink=files.event, clock=clock)
        self._books = Books(files, clock=clock, alarm=config.alarm)
        self._queue = ReplayQueue(
            ledger=self.ledger,
            groups_per_step=rollout.groups_per_step,
            max_lag=rollout.max_lag,
            weights_every=config.weights.every,
            group_size=rollout.group_size,
            min_members=rollout.min_members or rollout.group_size - 1,
            on_scored=lambda group, has_signal: self._endings.scored(group, has_signal),
            on_end=lambda ended: self._endings.ended(ended),
            lineage=resumed.lineage if resumed else None,
        )
        self._quarantine = Quarantine(note=files.event, clock=clock)
        self._curriculum = Curriculum({}, rollout, seed=config.run.seed, bars=self._quarantine)
        self._pools = Pools(
            self._versions(sources, resumed),
            run_dir=run_dir,
            actors=actors,
            evaluator=evaluator.actor if evaluator else None,
            curriculum=self._curriculum,
            queue=self._queue,
            note=files.event,
            evaluate=self._put_set,
            sets=lambda: self._evaluation_sets,
            configured_sets=config.eval.sets,
            trained=trained_ids(config.pools, sources, resumed.trained if resumed else ()),
            seed=config.run.seed,
            clock=clock,
        )
        if evaluator is not None:
            evaluator.when_ended = lambda: self._pools.put_evaluated(self._evaluated())
        self._watchdog = Watchdog(config, clock=clock)
        self._gate = Gate(self._on_gate)
        self._feed = Feed(
            config,
            fleet=self._fleet,
            queue=self._queue,
            curriculum=self._curriculum,
            gate=self._gate,
            clock=clock,
        )
        self._endings = Endings(
            config,
            ledger=self.ledger,
            queue=self._queue,
            curriculum=self._curriculum,
            feed=self._feed,
            pools=self._pools,
            quarantine=self._quarantine,
            books=self._books,
            watchdog=self._watchdog,
        )
        self._saver = Saver(
            run_dir=run_dir,
            config=config,
            pools=self._pools,
            ledger=self.ledger,
            queue=self._queue,
            curriculum=self._curriculum,
            quarantine=self._quarantine,
            books=self._books,
        )

        self._phase = "starting"
        self._step = 0
        self._time = StepTime(clock)
        self._before: Scores = {}
        self._train_wake = asyncio.Event()
        self.desk = Desk(
            status=self.status,
            gate=self._gate,
            saver=self._saver,
            pools=self._pools,
            quarantine=self._quarantine,
            queue=self._queue,
            ledger=self.ledger,
            books=self._books,
            metrics=metrics,
            is_training=lambda: self._feed.is_training,
            wake=self._train_wake.set,
        )
        """What can be asked of the run while it goes on."""

    def _versions(self, sources: Mapping[str, Source], resumed: Resumed | None) -> list[Version]:
        """The pools that the run begins with."""
        records = {record.key: record for record in resumed.pools} if resumed else {}
        evaluated = versions_of(self._evaluation_sets)
        return [
            Version(
                source=source,
                section=self._config.pools[source.name],
                state=records[source.key].state if source.key in records else PoolState.LIVE,
                is_evaluated=source.key in evaluated,
            )
            for source in sources.values()
        ]

    def _put_set(self, name: str, tasks: list[Task]) -> set[PoolKey]:
        """Evaluate on other tasks from now on; returns the versions that all sets are about."""
        sets = {**self._evaluation_sets, name: tasks}
        self._evaluation_sets = {name: tasks for name, tasks in sets.items() if tasks}
        if self._evaluator is not None:
            self._evaluator.put_sets(self._evaluation_sets)
        return self._evaluated()

    def _evaluated(self) -> set[PoolKey]:
        """The versions that sets are about, or an evaluation that is under way."""
        own = self._evaluator.evaluation if self._evaluator is not None else None
        running = [one.versions for one in (self._feed.evaluation, own) if one is not None]
        return versions_of(self._evaluation_sets).union(*running)

    # -- the run ------------------------------------------------------------------------------

    async def run(self) -> tuple[Scores, Scores]:
        """Evaluate, train, evaluate. Returns the scores before and after.

        Raises:
            ExceptionGroup: with whatever ended a stage.
        """
        results: list[Scores] = []
        if self._resumed is not None:
            self._step = self._resumed.snapshot.step
            self._saver.restore(self._resumed.snapshot)
        await self._pools.write()
        stages = {f"listen-{name}": self._listen(actor) for name, actor in self._actors.items()}
        stages |= {"feed": self._feed.run(), "sync": self._handover.run(), "watch": self._watch()}
        stages["pools"] = self._pools.run()
        if self._evaluator is not None:
            stages["evaluate"] = self._evaluator.run()
        try:
            await supervise(stages, self._clockwork(results))
        finally:
            self._saver.end()
            self._queue.cancel_all()
        before, after = results
        return before, after

    async def _clockwork(self, results: list[Scores]) -> None:
        config = self._config
        if self._resumed is not None:
            results.append(self._resumed.snapshot.before)
        else:
            results.append(await self._evaluate("before") if config.eval.before else {})
        if self._step < config.learner.steps:
            self._before = results[0]
            await self._train()
            await self._wait_until_held(idle=True)
        # A run without a step has nothing new to show.
        is_due = config.eval.after and config.learner.steps
        results.append(await self._evaluate("after") if is_due else {})
        self._phase = "done"

    @property
    def steps_done(self) -> int:
        return self._step

    @property
    def lag_max(self) -> int:
        """Largest lag of a trained rollout."""
        return self._books.lag_max

    def status(self) -> Status:
        """The run at this moment."""
        evaluation = self._feed.evaluation
        return Status(
            run_dir=str(self._run_dir),
            phase=self._phase,
            is_paused=self._gate.is_paused,
            evaluation=evaluation.progress if evaluation else None,
            step=self._step,
            steps=self._config.learner.steps,
            version=self._handover.version,
            engines=dict(self._fleet.versions),
            pools=[
                PoolStatus(
                    name=version.key.name,
                    version=version.key.version,
                    state=version.state,
                    slots_held=self._queue.slots_held_by(version.key),
                )
                for version in self._pools.versions
            ],
            slots=self._queue.slots,
            slots_held=self._queue.slots_held,
            groups=self.ledger.states(),
            reward=self._books.last_reward,
            uptime_s=self._clock() - self._started_s,
        )

    # -- stages -------------------------------------------------------------------------------

    async def _listen(self, actor: ActorPort) -> None:
        """Consumes an actor's events; produces journal, ended members, metrics.

        Waits for: the actor. Unblocks: feed (room), train (queued groups).
        """
        while True:
            for event in await actor.events():
                self._on_event(actor.name, event)

    async def _watch(self) -> None:
        """Measures the loop's lateness; ends a run in which nothing happens any more."""
        while True:
            asleep = self._clock()
            await asyncio.sleep(WATCH_PERIOD_S)
            self._books.loop_lag(max(0.0, self._clock() - asleep - WATCH_PERIOD_S))
            if self._gate.is_paused:
                self._watchdog.something_happened()
            else:
                self._watchdog.check(self._diagnosis)

    async def _train(self) -> None:
        """Consumes batches; produces steps, versions and checkpoints. The clock of the run.

        Waits for: a feasible batch. Unblocked by: listen. Unblocks: sync, feed.
        """
        learner = self._learner
        assert learner is not None, "a run with steps has a learner"
        self._phase = "training"
        self._feed.is_training = True
        self._books.begin_training()
        self._feed.wake()
        self._time.take()
        self._fleet.take_values(1.0)
        for step in range(self._step + 1, self._config.learner.steps + 1):
            batch = await self._next_batch(learner, step)
            is_last = step == self._config.learner.steps
            request = self._queue.train_batch(batch, step=step, is_last=is_last)
            with self._watchdog.learner_at_work():
                report = await learner.train(await self._saver.rolled_back(request))
            values = self._on_step(report, batch)
            if report.manifest is not None and report.manifest.is_sent:
                with self._watchdog.learner_at_work():  # nobody else has these weights yet
                    await self._wait_until_held()
            part = await self._begin_checkpoint(learner) if self._saver.is_due(step) else None
            self._feed.note_blocked()
            values |= {
                "step": step,
                "version": report.version,
                "time/wait_learner_s": self._feed.take_blocked_s(),
                "progress/wall_s": self._clock() - self._started_s,
            }
            values |= self._time.take()
            values |= self._fleet.take_values(values["time/step_s"])
            self._metrics.write(values)
            logger.info("%s", terminal_line(step, self._config, values))
            if part is not None:
                await self._commit_checkpoint(part)
        self._books.end_training()
        self._feed.is_training = False
        if self._evaluator is not None:
            self._evaluator.end()
        self._queue.cancel_all()
        self._watchdog.training_ended()
        self._feed.wake()

    async def _evaluate(self, label: str) -> Scores:
        """Play the evaluation sets with the weights the engines hold now."""
        if not self._evaluation_sets:
            return {}
        self._phase = doing(label, steps=self._config.learner.steps)
        samples = self._config.eval.samples
        self._feed.evaluation = evaluation = Evaluation(self._evaluation_sets, label, samples)
        logger.info("%s: %d episodes", self._phase, evaluation.total)
        self._feed.wake()
        while not evaluation.is_done:
            await self._train_wake.wait()
            self._train_wake.clear()
        self._feed.evaluation = None
        self._pools.put_evaluated(self._evaluated())
        return evaluation.scores()

    # -- events -------------------------------------------------------------------------------

    def _on_event(self, actor: str, event: ActorEvent) -> None:
        match event:
            case TurnDone():
                self._watchdog.something_happened()
                self._queue.note_turn(event)
            case RolloutDone(rollout=rollout):
                self._watchdog.something_happened()
                self._fleet.member_ended(actor)
                self._endings.rollout(actor, rollout)
                self._feed.wake()
                self._train_wake.set()
            case Busy():
                self._books.busy(event)
            case EngineStats():
                self._fleet.note_stats(actor, event)

    # -- train --------------------------------------------------------------------------------

    async def _next_batch(self, learner: LearnerPort, step: int) -> list[Group]:
        """The batch of `step`, once there is one and nobody paused; saves meanwhile if asked."""
        while True:
            if self._saver.is_asked:
                await self._save_now(learner)
            if not self._gate.is_paused and (batch := self._take(step)) is not None:
                return batch
            with self._time.spent(Spent.PAUSED if self._gate.is_paused else Spent.WAITING):
                await self._train_wake.wait()
            self._train_wake.clear()

    def _take(self, step: int) -> list[Group] | None:
        published = self._queue.gradient_version(step) + 1
        return self._queue.take(step) if self._handover.may_publish(published) else None

    def _on_step(self, report: StepReport, batch: list[Group]) -> Values:
        """Account for a finished step; returns its values."""
        self._step = report.step
        self._watchdog.step_trained()
        lags = {
            (group.id, rollout.member): self._queue.lag(rollout, report.step)
            for group in batch
            for rollout in group.trainable
        }
        self._books.trained(report, batch, lags)
        self._queue.trained(batch, step=report.step)
        self._handover.announce(report)
        values = self._books.take_values() | self._curriculum.values()
        if self._evaluator is not None:
            values |= self._evaluator.stepped(report.manifest)
        states = self.ledger.states()
        return values | {
            "queue/queued": states[GroupState.QUEUED],
            "queue/running": states[GroupState.RUNNING],
            "queue/slots_held": self._queue.slots_held,
            "progress/groups": sum(states.values()),
        }

    async def _begin_checkpoint(self, learner: LearnerPort) -> Path:
        """The learner's part of a checkpoint of the step just trained."""
        with self._watchdog.learner_at_work(), self._time.spent(Spent.SAVING):
            return await self._saver.begin(learner, self._step)

    async def _commit_checkpoint(self, part: Path) -> None:
        await self._saver.commit(
            part,
            step=self._step,
            version=self._handover.version,
            before=self._before,
            wall_s=self._clock() - self._started_s,
        )

    async def _save_now(self, learner: LearnerPort) -> None:
        """A checkpoint between two steps, for whoever asked."""
        if not self._step:
            self._saver.answer(Refused("no step is trained yet: ask again after the first"))
        elif saved := self._saver.saved(self._step):
            self._saver.answer(saved)
        else:
            await self._commit_checkpoint(await self._begin_checkpoint(learner))

    async def _wait_until_held(self, *, idle: bool = False) -> None:
        """Wait until every engine holds the newest version; with `idle` until no member is in flight."""
        fleet = self._fleet
        while fleet.oldest_version < self._handover.version or (idle and not fleet.is_idle):
            await self._train_wake.wait()
            self._train_wake.clear()

    def _on_held(self) -> None:
        """Every engine loaded a version."""
        self._queue.engines_hold(self._fleet.oldest_version)
        self._feed.wake()
        self._train_wake.set()

    def _on_gate(self) -> None:
        """The run was paused, or goes on: the time it stood still is nobody's."""
        logger.info(
            "paused after step %d" if self._gate.is_paused else "going on after step %d", self._step
        )
        self._watchdog.something_happened()
        self._feed.note_blocked()
        self._feed.wake()
        self._train_wake.set()

    # -- words --------------------------------------------------------------------------------

    def _diagnosis(self) -> str:
        return (
            f"phase {self._phase}, step {self._step}, slots {self._queue.slots_held}/"
            f"{self._queue.slots}, in flight {self._fleet.in_flight}, engines {self._fleet.versions}, "
            f"groups {self.ledger.states()}; oldest running: {self._queue.missing()}"
        )
