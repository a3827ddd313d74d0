"""What a run says on a terminal: the drawn panel, the log lines, the words at its end."""

import asyncio
import io
import logging
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from rich.text import Text

from configs.load import load
from rollout import announce, checkpoints, select
from rollout.evaluate import Progress, doing
from rollout.files import RolloutRow, RunFiles
from rollout.ledger import LedgerCounts
from rollout.metrics import Values, terminal_line
from rollout.panel import Moment, draw
from rollout.scores import Score, score
from rollout.status import Status
from rollout.summary import Difference, Summary, differences, head, pair, rows, table
from rollout.terminal import ConsoleLines, Screen, open_screen
from rollout.types import StopReason
from tests.fakes import make_rollout
from tests.screen import screen as screen_of

ROOT = Path(__file__).parent.parent.parent

VALUES: Values = {
    "time/step_s": 2.0,
    "reward/all_mean": 0.5,
    "lag/mean": 1.5,
    "lag/max": 2,
    "perf/tokens_per_s": 3700.0,
    "time/wait_learner_s": 0.25,
    "time/wait_rollout_s": 0.0,
}


def make_status(
    phase: str = "training", *, step: int = 57, progress: Progress | None = None
) -> Status:
    return Status(
        run_dir="runs/a",
        phase=phase,
        evaluation=progress,
        step=step,
        steps=140,
        version=step,
        engines={"actor-0": step},
        pools=[],
        slots=12,
        slots_held=9,
        groups={},
        reward=0.5,
        uptime_s=1.0,
    )


def evaluating(done: int) -> Status:
    progress = Progress(label="before", done=done, total=840)
    return make_status("evaluating before training", step=0, progress=progress)


def drawn(moment: Moment | None, *, width: int = 100) -> str:
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system=None, width=width).print(
        draw(moment, "starting", 62.0)
    )
    return file.getvalue()


def at(status: Status, *recent: Values) -> Moment:
    return Moment(status=status, recent=recent, max_lag=2, phase_s=30.0)


def test_training_shows_progress_reward_lag_and_who_waits() -> None:
    text = drawn(at(make_status(), {**VALUES, "reward/all_mean": 0.25}, VALUES))
    for words in (
        "training",
        "57/140",
        "1:02, 2:46 left",  # 83 steps of 2 s
        "reward 0.38 (mean of 2 steps)",
        "lag 1.5 mean, 2 max, 2 bound",
        "3.7k tokens/s",
        "generation waits for learner 0.25 s, learner waits for rollouts 0.00 s",
    ):
        assert words in text


def test_a_step_in_which_nothing_ended_has_no_reward_and_no_length() -> None:
    values: Values = dict.fromkeys(
        ("time/step_s", "time/wait_rollout_s", "time/wait_learner_s", "lag/mean"), 0.0
    )
    line = terminal_line(3, load(["local.toml"]), values)
    assert line.startswith("step 3/60 | 0.00 s | reward - | lag 0.0/2 | len - | ")
    line = terminal_line(3, load(["local.toml"]), values | {"reward/all_mean": 0.0})
    assert "| reward 0.000 |" in line


def test_an_evaluation_shows_its_episodes() -> None:
    text = drawn(at(evaluating(210)))
    assert "evaluating before training" in text and "210/840" in text and "1:30 left" in text
    assert "left" not in drawn(at(evaluating(0)))


def test_before_anything_is_known_the_time_passes() -> None:
    assert drawn(None) == "starting  1:02\n"
    assert "0/140" in drawn(at(make_status(step=0)))


@pytest.mark.parametrize("width", [1, 5, 12, 20, 40, 60, 80, 200])
def test_no_width_breaks_the_panel(width: int) -> None:
    for moment in (None, at(make_status(), VALUES), at(evaluating(210)), at(make_status())):
        lines = drawn(moment, width=width).splitlines()
        assert len(lines) <= 3
        assert max(len(line) for line in lines) <= width


def test_without_a_terminal_an_evaluation_reports_every_ten_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 0.0
    plain = Screen(handler=logging.NullHandler(), is_live=False, clock=lambda: now_s)
    with caplog.at_level(logging.INFO):
        for half_seconds in range(61):
            now_s = half_seconds / 2
            plain.show(evaluating(half_seconds), [], max_lag=2)
        for _ in range(60):
            now_s += 1
            plain.show(make_status(), [VALUES], max_lag=2)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"evaluating before training: {done}/840 episodes" for done in (20, 40, 60)]


def test_on_a_terminal_progress_is_drawn_not_said(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    live = Screen(handler=logging.NullHandler(), is_live=True, clock=lambda: now_s)
    with caplog.at_level(logging.INFO):
        live.show(evaluating(1), [], max_lag=2)
        now_s = 99.0
        live.show(evaluating(2), [], max_lag=2)
    assert caplog.records == []
    assert live.moment is not None and live.moment.phase_s == 99.0


async def test_the_run_is_followed_until_it_ends() -> None:
    looked = asyncio.Event()

    def status() -> Status:
        looked.set()
        return make_status()

    live = Screen(handler=logging.NullHandler(), is_live=True)
    async with live.following(status, [VALUES], max_lag=2):
        await looked.wait()
        assert live.moment is not None and live.moment.recent == (VALUES,)
    assert live.moment is None and live.doing == "closing"


def record(message: str, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("rollout", level, "", 0, message, None, None)
    made.__dict__.update(extra)
    return made


def test_lines_are_neither_folded_nor_markup_and_tables_replace_plain_text() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=20, soft_wrap=True)
    lines = ConsoleLines(console)
    lines.emit(record("python launch.py show a/long/path/to/a/run [red] \x1b[2J"))
    lines.emit(record("plain", renderable=Text("rich")))
    lines.emit(record("late", logging.WARNING))
    plain = "python launch.py show a/long/path/to/a/run [red] \\x1b[2J\nrich\n"
    assert file.getvalue() == f"{plain}\x1b[33mlate\x1b[0m\n"


def test_output_that_is_no_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with open_screen() as plain:
        plain.show(make_status(), [VALUES], max_lag=2)
        plain.handler.handle(record("step 1/2 \x1b[2J"))
    assert not plain.is_live
    assert capsys.readouterr().out == "step 1/2 \\x1b[2J\n"


CHILD = """
import logging, signal, sys
from pathlib import Path
from rollout.logs import driver_logging
from rollout.terminal import open_screen
from tests.rollout.test_terminal import VALUES, make_status

log = logging.getLogger("launch")
try:
    with open_screen() as screen, driver_logging(
        Path(sys.argv[1]), "INFO", terminal=screen.handler
    ):
        for step in range(1, 4):
            screen.show(make_status(step=step), [VALUES], max_lag=2)
            log.info("step %d", step)
        if sys.argv[2] == "interrupted":
            signal.raise_signal(signal.SIGINT)
        log.info("done")
except KeyboardInterrupt:
    print("interrupted")
"""


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a child writes to a pseudo-terminal of its own."""
    master, slave = pty.openpty()
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    variables |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **environment}
    command = [sys.executable, "-c", CHILD, *arguments]
    output = b""
    with subprocess.Popen(
        command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, env=variables
    ) as process:
        os.close(slave)
        try:
            while chunk := os.read(master, 65536):
                output += chunk
        except OSError:
            pass  # how Linux says that the other end is closed
    os.close(master)
    assert process.returncode == 0, output
    return output.decode()


@pytest.mark.parametrize("end", ["done", "interrupted"])
def test_a_terminal_keeps_the_lines_alone(tmp_path: Path, end: str) -> None:
    output = on_a_terminal(str(tmp_path), end)
    assert "training" in output and "/140" in output  # it was drawn
    assert screen_of(output) == ["step 1", "step 2", "step 3", end]
    hidden, shown = output.rfind("\x1b[?25l"), output.rfind("\x1b[?25h")
    assert 0 <= hidden < shown


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_and_drawing_can_be_declined(tmp_path: Path, environment: dict[str, str]) -> None:
    output = on_a_terminal(str(tmp_path), "done", **environment)
    assert screen_of(output) == ["step 1", "step 2", "step 3", "done"]
    assert re.search(r"\x1b\[[0-9;]*[34][0-9][0-9;]*m", output) is None
    assert ("training" in output) is ("NO_COLOR" in environment)


def write_evaluation(
    run_dir: Path, label: str, rewards: list[float | None], *, task_id: str = "basics/sum_list/0"
) -> None:
    files = RunFiles(run_dir)
    for index, reward in enumerate(rewards):
        rollout = make_rollout(f"eval/{label}/fresh.sampled/{index}", reward=reward or 0.0)
        row = RolloutRow.of(rollout, config={}, group_size=1)
        row = msgspec.structs.replace(row, task_id=task_id)
        files.evaluation(
            label, row if reward is not None else msgspec.structs.replace(row, reward=None)
        )
    files.close()


def test_differences_are_paired_task_by_task(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "before", [0, 0, 1, 0, None, 1])
    assert differences(tmp_path) == {}  # nothing to compare with
    write_evaluation(tmp_path, "after", [1, 1, 1, 0, 1])
    found = differences(tmp_path)["fresh", "sampled"]
    assert (found.mean, found.count) == (0.5, 4)
    # Gains 1, 1, 0, 0: standard deviation sqrt(1/3), so that the half-width is 1.96 * .289.
    assert found.high - found.mean == pytest.approx(0.5658, abs=1e-4)


def test_other_tasks_in_the_same_places_are_no_pairs(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "before", [0, 0, 1])
    write_evaluation(tmp_path, "after", [1, 1, 1], task_id="basics/sum_list/1")
    assert differences(tmp_path) == {}


def test_the_table_has_both_scores_and_their_difference() -> None:
    before = {"fresh": {"sampled": score([make_rollout(f"{r}", reward=r) for r in (0.0, 1.0)])}}
    after = {"fresh": {"sampled": score([make_rollout(task, reward=1.0) for task in "ab"])}}
    gain = Difference(mean=0.5, low=-0.48, high=1.48, count=2)
    paired = pair(before, after, {("fresh", "sampled"): gain})
    first, line = table(paired)
    assert first.split()[:2] == ["set", "mode"]
    cells = (
        "fresh",
        "sampled",
        "0.500 [.09, .91]",
        "1.000 [.34, 1.00]",
        "+0.500 [-.48, +1.48]",
        "2",
    )
    assert rows(paired) == [cells]
    assert all(cell in line for cell in cells)
    assert len(head(paired)) == len(cells)
    alone = pair(before, {}, {})
    assert (head(alone)[2:], rows(alone)[0][2:]) == (("avg@1", "n"), ("0.500 [.09, .91]", "2"))
    assert table({}) == []


def test_with_several_samples_the_table_has_what_they_add() -> None:
    def scored(*tasks: tuple[float, float]) -> Score:
        rollouts = [
            make_rollout(f"t{number}", member, reward=reward)
            for number, rewards in enumerate(tasks)
            for member, reward in enumerate(rewards)
        ]
        return score(rollouts, samples=2)

    before = {
        "fresh": {
            "sampled": scored((0.0, 1.0), (0.0, 0.0)),
            "greedy": score([make_rollout("t0", reward=1.0)]),
        }
    }
    alone = pair(before, {}, {})
    assert head(alone) == ("set", "mode", "avg@2", "pass@2", "pass^2", "n")
    greedy, sampled = rows(alone)
    assert sampled[2].startswith("0.250 [") and sampled[3].startswith("0.500 [")
    assert sampled[5] == "2 x 2" and greedy[3:] == ("-", "-", "1")
    after = {"fresh": {"sampled": scored((1.0, 1.0), (0.0, 1.0))}}
    both = pair(before, after, {})
    assert head(both)[2:5] == ("before", "after", "change, paired")
    assert rows(both)[1][5:] == ("0.500 -> 1.000", "0.000 -> 0.500", "2 x 2")
    assert {len(row) for row in rows(both)} == {len(head(both))}


def test_the_table_counts_what_was_graded() -> None:
    """Of two tasks with two samples one faulted; of the evaluation with more episodes, if they differ."""
    played = [make_rollout(f"t{number % 2}", number // 2, reward=1.0) for number in range(4)]
    faulted = [make_rollout("t1", 1, stop=StopReason.TIMEOUT)]
    whole, less = score(played, samples=2), score(played[:3] + faulted, samples=2)
    for before, after, words in (
        (whole, whole, "2 x 2"),
        (less, less, "3"),
        (less, whole, "2 x 2"),
    ):
        paired = pair({"fresh": {"sampled": before}}, {"fresh": {"sampled": after}}, {})
        assert rows(paired)[0][-1] == words


def test_differences_are_of_the_means_of_a_tasks_samples(tmp_path: Path) -> None:
    for label, rewards in {"before": (0, 0, 1, 1), "after": (1, 0, 1, 1)}.items():
        files = RunFiles(tmp_path)
        for index, reward in enumerate(rewards):
            where = f"eval/{label}/fresh.sampled/{index // 2}"
            rollout = make_rollout(where, index % 2, reward=float(reward))
            files.evaluation(label, RolloutRow.of(rollout, config={}, group_size=2))
        files.close()
    found = differences(tmp_path)["fresh", "sampled"]
    assert (found.mean, found.count) == (0.25, 2)


def test_after_a_resumed_run_nothing_is_said_of_a_recipe_nobody_named() -> None:
    run_dir = Path("/tmp/a b")
    newest = run_dir / "checkpoints" / "step_9"
    for settings, last in (
        (["learner.steps=9"], ["--resume", str(run_dir), "learner.steps=18"]),
        (["learner.steps=9", "weights.every=2"], ["show", str(run_dir), "eval=after", "reward=0"]),
    ):
        config = load(["local.toml", *settings])
        commands = announce.next_commands(config, run_dir, newest, None)
        assert shlex.split(commands[-1])[-len(last) :] == last


@pytest.mark.parametrize(
    "arguments",
    [
        ["local.toml", "run.dir=/tmp/a b", "learner.steps=9"],
        ["run.dir=/tmp/a b", "rollout.max_lag=0"],
        ["weights.every=3", "model.path=elsewhere", "eval.sets.fresh.count=5"],
    ],
)
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_the_next_commands_are_commands(arguments: list[str], has_checkpoint: bool) -> None:
    run_dir = Path("/tmp/a b")
    newest = run_dir / "checkpoints" / "step_9" if has_checkpoint else None
    config = load(["local.toml", *arguments])
    commands = announce.next_commands(config, run_dir, newest, arguments)
    words = [shlex.split(command) for command in commands]
    assert len(words) == 3
    for line in words:
        after_program = line[line.index(sys.argv[0]) + 1 :]
        if after_program[0] == "show":
            assert after_program[1] == str(run_dir)
            select.parse(after_program[2:])
        else:
            settings = [word for word in after_program if word != "eval"]
            loaded = load(["local.toml", *settings])
            assert not loaded.run.dir
            if after_program[0] == "eval":
                assert not [word for word in line if "max_lag" in word or "weights" in word]
                assert ("eval.sets.fresh.count=5" in line) is (
                    "eval.sets.fresh.count=5" in arguments
                )
                assert loaded.model.path == str(run_dir / "checkpoints/step_9/hf")
            elif has_checkpoint:
                assert (loaded.rollout.max_lag, loaded.learner.steps) != (
                    config.rollout.max_lag,
                    config.learner.steps,
                )


def test_a_run_that_broke_off_says_whether_it_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    announce.how_to_go_on(tmp_path, load(["local.toml", "learner.steps=0"]))
    assert caplog.text == ""  # an evaluation has nothing to go on from
    config = load(["local.toml", "checkpoint.every=30"])
    announce.how_to_go_on(tmp_path, config)
    assert "no checkpoint yet (checkpoint.every=30): it cannot be resumed" in caplog.text
    checkpoints.mark_done(checkpoints.begin(tmp_path, 30))
    announce.how_to_go_on(tmp_path, config)
    assert "to go on from step 30: " in caplog.text and f"--resume {tmp_path}" in caplog.text


def summary(**changes: object) -> Summary:
    counts = LedgerCounts(groups={"trained": 4}, rollouts={"trained": 16})
    made = Summary(eval={}, steps=0, wall_s=2.0, lag_max=0, ledger=counts, ledger_balanced=True)
    return msgspec.structs.replace(made, **changes)


def test_a_run_without_steps_speaks_of_evaluation_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = load(["local.toml", "learner.steps=0"])
    announce.closing(summary(), config, tmp_path, ["learner.steps=0"])
    assert "evaluated in 2 s" in caplog.text
    assert "steps in" not in caplog.text and "trained" not in caplog.text
    broken = summary(ledger_balanced=False, ledger_error="files give 3")
    announce.closing(broken, config, tmp_path, ["learner.steps=0"])
    assert "does NOT balance" in caplog.text and "files give 3" in caplog.text
    caplog.clear()
    announce.closing(summary(steps=4), load(["local.toml"]), tmp_path, [])
    assert "4 steps in 2 s" in caplog.text and "4 trained" in caplog.text
    assert [doing("before", steps=steps) for steps in (0, 9)] == [
        "evaluating",
        "evaluating before training",
    ]


def test_eval_after_a_run_is_given_what_shapes_it_and_nothing_of_training() -> None:
    run_dir = Path("/tmp/a")
    shaping = ["mine.toml", "pools.tiny.train=[]", "eval.samples=4", "rollout.max_turns=3"]
    others = ["eval.after=false", "eval.every=4", "learner.lr=1", "logging.wandb=off"]
    others += ["checkpoint.every=1", "rollout.max_lag=0", "rollout.group_size=4"]
    config = load(["local.toml", *shaping[1:], *others])
    commands = announce.next_commands(config, run_dir, run_dir / "step_9", [*shaping, *others])
    words = [shlex.split(command) for command in commands]
    assert words[1][-5:-1] == shaping and words[1][-6] == "eval"
    assert words[0][-2:] == ["reward=0", "state=trained"]  # nothing was evaluated afterwards
    graded = announce.next_commands(load(["local.toml"]), run_dir, run_dir / "step_9", [])
    assert shlex.split(graded[0])[-2:] == ["eval=after", "reward=0"]
