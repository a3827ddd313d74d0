"""Evaluation while training goes on: published versions, played by an actor of their own.

    train -- manifest of a due step --> pin -> load -> play -> values, rows --> metrics, files
                                        kept until the next one is loaded

Training's engines change weights under their episodes, so that none of them can show one version. The
evaluator's actor is a process of its own, with few episodes in flight, that on a machine shared with
training computes only when nobody else wants to; it loads one version and keeps it until every
episode ended. Its episodes are in no ledger and no queue, nothing waits for it, and when it fails,
training goes on without it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from itertools import islice

from configs.schema import RunConfig
from envpool.task import Task
from rollout.buffer import MEMBER_RETRIES
from rollout.engine import EngineError
from rollout.evaluate import Evaluation
from rollout.files import RunFiles
from rollout.metrics import Values
from rollout.ports import ActorPort
from rollout.supervise import root_cause
from rollout.types import EngineStats, Grant, Rollout, RolloutDone
from rollout.weights import NUM_PINS, Manifest, WeightsError, pin, unpin

logger = logging.getLogger(__name__)

NAME = "evaluator"

# Episodes at once: enough for a batch, few enough that one step of its engine is short.
MAX_IN_FLIGHT = 16


def is_wanted(config: RunConfig) -> bool:
    """Whether a run evaluates while it trains."""
    return config.eval.every > 0 and config.learner.steps > 0


class Evaluator:
    """Plays the first configurations of each set on versions that it is offered, one at a time."""

    def __init__(
        self,
        actor: ActorPort,
        *,
        config: RunConfig,
        sets: Mapping[str, list[Task]],
        run_id: str,
        files: RunFiles,
        clock: Callable[[], float],
        step: int = 0,
        pins: bool = True,
    ) -> None:
        """`step`: the optimizer steps done before this process began. `pins`: its actor reads published
        files themselves, which are kept from being replaced until it has."""
        self.actor = actor
        self._num_tasks = config.eval.during
        self.put_sets(sets)
        self._run_id = run_id
        self._pins = pins
        self._files = files
        self._clock = clock
        self._every = config.eval.every
        self._last_step = config.learner.steps
        self._deadline_s = config.weights.deadline_s
        self._stall_s = config.control.stall_s
        self._due = self._next_due(step)
        self._offered: Manifest | None = None
        self.evaluation: Evaluation | None = None
        """What is being played, if anything is."""
        self.when_ended: Callable[[], None] = lambda: None
        """Called when it was played, or given up."""
        self._version = 0
        self._served: Manifest | None = None
        """The pinned version that the engine has, if any: one that has to take its place loads it again."""
        self._num_pinned = 0
        self._in_flight: set[tuple[str, int]] = set()
        self._retries: list[Grant] = []
        self._news = asyncio.Event()
        self._is_over = False
        self._cpu_s = 0.0
        self._values: Values = {}
        self.is_idle = asyncio.Event()
        """Set while no version is taken."""
        self.is_idle.set()

    def put_sets(self, sets: Mapping[str, list[Task]]) -> None:
        """Play these from the next evaluation on."""
        self._sets = {name: list(islice(tasks, self._num_tasks)) for name, tasks in sets.items()}

    def stepped(self, published: Manifest | None) -> Values:
        """A step was trained, and perhaps published; returns what was found since the last one."""
        if published is not None:
            self.offer(published)
        values, self._values = self._values, {}
        return values

    def end(self) -> None:
        """Training is over: what is being played is given up, and nothing new begins."""
        self._is_over = True
        self._news.set()

    async def run(self) -> None:
        """Consumes offered versions; produces values and rows. An endless stage.

        Waits for: a due version, its actor. A failure is said aloud and ends evaluation, not the run.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(), name="evaluator-listen")
                await self._serve()
        except Exception as error:  # noqa: BLE001 - as a metric sink: it never stops the run
            self._is_over = True
            self._values["eval/is_off"] = 1
            self.is_idle.set()
            cause = root_cause(error)
            logger.error(  # noqa: TRY400 - the cause is in the message, its process in the log
                "evaluation during training is off for the rest of this run; training goes on: "
                "%s: %s",
                type(cause).__name__,
                cause,
            )
        await self._serve_instead(None)
        await asyncio.Event().wait()

    def offer(self, manifest: Manifest) -> None:
        """Take a version if one is due and none is being played.

        The last step's never is: it is played after training.
        """
        is_due = self._due <= manifest.step < self._last_step
        if is_due and self._offered is None and not self._is_over:
            self._offered = manifest
            self.is_idle.clear()
            self._due = self._next_due(manifest.step)
            self._news.set()

    async def _serve(self) -> None:
        while not self._is_over:
            await self._news.wait()
            self._news.clear()
            if (manifest := self._offered) is not None and not self._is_over:
                begun_s, cpu_before_s = self._clock(), self._cpu_s
                if await self._load(manifest) and await self._play(manifest):
                    wall_s = self._clock() - begun_s
                    self._report(manifest, wall_s=wall_s, cpu_s=self._cpu_s - cpu_before_s)
                self.evaluation = self._offered = None
                self.is_idle.set()
                self.when_ended()
        await self._serve_instead(None)

    async def _load(self, manifest: Manifest) -> bool:
        """Load a version; a version that does not load is skipped."""
        try:
            pinned = None
            if self._pins:
                place = self._num_pinned % NUM_PINS
                pinned = await asyncio.to_thread(pin, manifest, self._run_id, place=place)
            try:
                async with asyncio.timeout(self._deadline_s):
                    await self.actor.update_weights(pinned or manifest)
            except BaseException:
                if pinned is not None:
                    await asyncio.to_thread(unpin, pinned)
                raise
        except (OSError, WeightsError, EngineError) as error:  # TimeoutError is an OSError
            logger.error(  # noqa: TRY400 - one line: the next version may load
                "version %d (step %d) is not evaluated: %s: %s",
                manifest.version,
                manifest.step,
                type(error).__name__,
                str(error) or f"not loaded within weights.deadline_s={self._deadline_s:g}",
            )
            return False
        self._num_pinned += 1
        await self._serve_instead(pinned)
        return True

    async def _serve_instead(self, pinned: Manifest | None) -> None:
        """Let go of the version that was served before."""
        before, self._served = self._served, pinned
        if before is not None:
            await asyncio.to_thread(unpin, before)

    async def _play(self, manifest: Manifest) -> bool:
        """Play every configuration; False when training ended first."""
        self._version = manifest.version
        self.evaluation = evaluation = Evaluation(self._sets, f"step_{manifest.step}")
        while not self._is_over:
            if evaluation.is_done:
                return True
            grants, self._retries = self._retries, []
            grants += evaluation.next(MAX_IN_FLIGHT - len(self._in_flight) - len(grants))
            self._in_flight |= {(g.group_id, member) for g in grants for member in g.members}
            if grants:
                await self.actor.play(grants)
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._news.wait()
            except TimeoutError as error:
                raise TimeoutError(
                    f"no episode of {evaluation.label} ended within control.stall_s="
                    f"{self._stall_s:g}"
                ) from error
            self._news.clear()
        await self.actor.cancel([group_id for group_id, _ in self._in_flight])
        logger.info("the evaluation of step %d was not finished when training was", manifest.step)
        return False

    async def _listen(self) -> None:
        while True:
            for event in await self.actor.events():
                match event:
                    case RolloutDone(rollout=rollout):
                        self._on_rollout(rollout)
                    case EngineStats():
                        self._cpu_s = event.cpu_s

    def _on_rollout(self, rollout: Rollout) -> None:
        self._in_flight.discard((rollout.group_id, rollout.member))
        evaluation = self.evaluation
        if evaluation is None or self._is_over:
            return
        if rollout.stop.is_fault and rollout.attempt < MEMBER_RETRIES:
            self._retries.append(evaluation.retry(rollout))
        else:
            found = {span.version for row in rollout.rows for span in row.spans}
            if found - {self._version}:
                raise RuntimeError(f"versions {found} played an evaluation of {self._version}")
            evaluation.record(rollout)
        self._news.set()

    def _report(self, manifest: Manifest, *, wall_s: float, cpu_s: float) -> None:
        """Write the rows, all at once: a checkpoint sees all of an evaluation or none of it."""
        assert self.evaluation is not None
        for done in self.evaluation.results.values():
            for rollout in done.values():
                row = self.evaluation.row(rollout)
                self._files.evaluation(self.evaluation.label, row, rollout.rows)
        words = []
        faults = 0
        for name, modes in self.evaluation.scores().items():
            for mode, found in modes.items():
                faults += found.faults
                if found.mean is not None:
                    self._values[f"eval/{name}/{mode}"] = found.mean
                    words.append(f"{name} {mode} {found.mean:.3f}")
        self._values |= {
            "eval/step": manifest.step,
            "eval/version": manifest.version,
            "eval/faults": faults,
            "eval/wall_s": wall_s,
            "eval/cpu_s": cpu_s,
        }
        logger.info(
            "evaluated step %d (version %d) beside training, %.1f s, %.1f s of CPU: %s",
            manifest.step,
            manifest.version,
            wall_s,
            cpu_s,
            ", ".join(words),
        )

    def _next_due(self, step: int) -> int:
        return (step // self._every + 1) * self._every
