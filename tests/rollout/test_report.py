"""The report of a run: its numbers are those of the files, its text is safe, its gaps are named."""

import logging
import os
import re
import shutil
import subprocess
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from itertools import count, pairwise
from pathlib import Path

import msgspec
import pytest

import launch
from configs.load import ConfigError, load
from configs.schema import AlarmSection
from envpool.task import Task
from rollout import audit, processes, run, rundir
from rollout.books import Books
from rollout.buffer import Ended, ReplayQueue
from rollout.evaluate import Evaluation, Place, place
from rollout.files import RolloutRow, RunFiles
from rollout.ledger import GroupState, Ledger
from rollout.metrics import MetricsWriter
from rollout.report import page
from rollout.report.curves import binned, occupancy, running_mean
from rollout.report.digest import Verdict, digest
from rollout.report.flow import LIVE, flows, layout
from rollout.report.transcripts import Changes, changes, choose
from rollout.scores import score
from rollout.summary import Summary, cell, pair
from rollout.types import Busy, Grant, Rollout, StepReport, StopReason
from tests.fakes import make_rollout, make_turn
from tests.recipes import BASICS

HOSTILE = "<script>alert(1)</script><img src=http://example.org/x onerror=alert(2)>"
ENV = "sum_$_list"  # a dollar sign begins a formula elsewhere
STEPS, GROUPS, MEMBERS = 6, 2, 4


class Played:
    """A run that the project's own writers wrote down, on a clock that ticks a second a look."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.version = 0
        overrides = [f"learner.steps={STEPS}", f"rollout.groups_per_step={GROUPS}"]
        overrides += [f"rollout.group_size={MEMBERS}", f"run.dir={run_dir}"]
        rundir.prepare(load([BASICS, *overrides]))
        ticks = count(100)
        self.clock = lambda: float(next(ticks))
        self.files = RunFiles(run_dir)
        self.books = Books(self.files, clock=self.clock, alarm=AlarmSection())
        self.ledger = Ledger(sink=self.files.event, clock=self.clock)
        self.metrics = MetricsWriter(self.files, wandb=None)
        self.queue = ReplayQueue(
            ledger=self.ledger,
            groups_per_step=GROUPS,
            max_lag=2,
            weights_every=1,
            group_size=MEMBERS,
            min_members=MEMBERS,
            on_scored=lambda group, _: self.books.scored(group),
            on_end=self._on_end,
        )

    def _on_end(self, ended: Ended) -> None:
        number = self.books.group_ended(ended.group)
        self.ledger.count_rollouts(ended.group.state, number)

    def rollout(self, task: Task, group_id: str, member: int, reward: float) -> Rollout:
        turns = [
            msgspec.structs.replace(make_turn(), action=action, observation=answer, env_s=0.25)
            for action, answer in (
                ('{"name": "get", "arguments": {"index": 3}}', HOSTILE),
                (f"no call {HOSTILE}", "Error: what?"),
            )
        ]
        return msgspec.structs.replace(
            make_rollout(group_id, member, reward=reward, versions=(self.version,)),
            env=task.env,
            task_id=task.id,
            turns=turns,
            prompt=f"Sum all numbers {HOSTILE}",
        )

    def evaluate(self, label: str, rewards: list[float]) -> Evaluation:
        tasks = [make_task(number=i) for i in range(len(rewards))]
        evaluation = Evaluation({"fresh": tasks, "<b>odd</b>": tasks[:2]}, label)
        for grant in evaluation.next(1000):
            where = place(grant.group_id)
            done = self.rollout(grant.task, grant.group_id, 0, rewards[where.number])
            evaluation.record(done)
            self.books.evaluated(evaluation, done)
        return evaluation

    def train(self, steps: int = STEPS) -> None:
        self.books.begin_training()
        for step in range(1, steps + 1):
            self.version = max(0, step - 2)  # the first at lag 0, the others at lag 1
            self._play_groups()
            batch = self.queue.take(step)
            assert batch is not None
            lags = {
                (group.id, rollout.member): self.queue.lag(rollout, step)
                for group in batch
                for rollout in group.trainable
            }
            begin = self.clock()
            self.books.busy(Busy(who="actor-0", start_s=begin - 2, end_s=begin + 1.5))
            busy = [Busy(who="learner", start_s=begin, end_s=self.clock())]
            report = StepReport(
                step=step, version=step - 1, manifest=None, metrics={"time/train_s": 0.5}, busy=busy
            )
            self.books.trained(report, batch, lags)
            self.queue.trained(batch, step=step)
            self.queue.engines_hold(step)
            times = {"time/step_s": 1.0, "time/wait_rollout_s": 0.25, "time/wait_learner_s": 0.1}
            self.metrics.write({"step": step, **times, **self.books.take_values()})

    def _play_groups(self) -> None:
        """Groups with signal for a step, and one without."""
        for kind in range(GROUPS + 1):
            group = self.queue.create(make_task(number=kind))
            self.queue.start(group, actor="actor-0", version=self.version)
            for member in range(MEMBERS):
                reward = float(member % 2) if kind < GROUPS else 0.0
                self.queue.finish(self.rollout(group.task, group.id, member, reward))

    def end(self) -> None:
        """Leave a group unfinished, as every run does; close the files."""
        self.queue.start(self.queue.create(make_task()), actor="actor-0", version=0)
        self.books.end_training()
        self.queue.cancel_all()
        self.files.close()


def make_task(**config: int) -> Task:
    return Task(pool="basics", pool_version="v", env=ENV, config=config, seed=1)


BEFORE, AFTER = [0.0, 0.0, 1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended well, with its report; one of the tests below may add to the directory."""
    path = tmp_path_factory.mktemp("report") / "a $run"
    played = Played(path)
    before = played.evaluate("before", BEFORE)
    played.train()
    after = played.evaluate("after", AFTER)
    played.end()
    summary = Summary(
        eval=pair(before.scores(), after.scores(), {}),
        steps=STEPS,
        wall_s=3700.0,
        lag_max=played.books.lag_max,
        ledger=played.ledger.counts(),
        ledger_balanced=True,
    )
    rundir.write_json(path / "summary.json", summary)
    assert page.write(path) == path / "report.html"
    return path


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """What a browser takes for elements of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def table_rows(html: str) -> dict[str, list[str]]:
    """The cells of every table's rows by the first; of equal ones, those of the earlier table."""
    rows: dict[str, list[str]] = {}
    for row in re.findall(r"<tr>(.*?)</tr>", html):
        first, *others = (
            unescape(text) for text in re.findall(r"<td[^>]*>(.*?)</td>", row) or [""]
        )
        rows.setdefault(first, others)
    return rows


def text_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", html))


def test_counts_are_those_that_the_audit_recomputes(run_dir: Path, html: str) -> None:
    counts = audit.recompute(run_dir)
    assert counts.groups == {
        "trained": STEPS * GROUPS, "stale": 0, "filtered": STEPS, "failed": 0, "cancelled": 1,
    }  # fmt: skip
    assert "wall time 1 h 01 min" in " ".join(text_of(html).split())
    rows = table_rows(html)
    for state, number in counts.groups.items():
        assert rows[state][0] == str(number)
        assert rows[state][2] == str(counts.rollouts[state])
    lags = Counter(row.lag for row in audit.rows(run_dir) if row.lag is not None)
    found = digest(run_dir)
    assert found.journal.lags == lags
    share = audit.busy_share(run_dir)
    assert found.timeline.shares() == share and share.both > 0
    assert f"both at once {share.both:.0%}".replace("%", " %") in text_of(html)
    assert rows["waiting for rollouts"] == ["1.5 s", "25 %", "0.25 s"]
    assert rows["training"] == ["3.0 s", "50 %", "0.50 s"]
    assert "those already begun went on" in text_of(html) and "Set fresh: 400" in text_of(html)


def test_scores_are_those_of_the_episodes(run_dir: Path, html: str) -> None:
    decode = msgspec.json.Decoder(RolloutRow).decode
    cells = []
    for label in ("before", "after"):
        lines = (run_dir / "rollouts" / f"eval_{label}.jsonl").read_bytes().splitlines()
        rows = [row for row in map(decode, lines) if "/fresh.sampled/" in row.group_id]
        cells.append(cell(score(rows)))
    row = table_rows(html)["fresh, sampled"]
    assert row[:2] == cells and cells[0].startswith("0.333 ")
    assert row[2:] == ["+0.333", "3 / 1", "0.62", "6", "0"]
    assert "Of the same tasks 3 got better and 1 worse (p = 0.62 if" in text_of(html)


def test_environments_share_is_the_sum_of_their_turns(run_dir: Path, html: str) -> None:
    rows = list(audit.rows(run_dir))
    env_s = sum(turn.env_s for row in rows for turn in row.turns)
    generate_s = sum(turn.generate_s for row in rows for turn in row.turns)
    assert (
        f"({env_s:,.1f} s) over the sum of env_s and generate_s ({env_s + generate_s:,.1f} s)"
        in (text_of(html))
    )


def test_what_an_environment_or_a_recipe_wrote_is_escaped(html: str) -> None:
    assert "<script" not in html and "<img src=http" not in html and "<b>odd</b>" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    assert "&lt;b&gt;odd&lt;/b&gt; set" in html


def test_a_page_asks_for_nothing(run_dir: Path, html: str) -> None:
    elements = Elements(html)
    assert not elements.tags & {"script", "iframe", "object", "embed", "form"}
    asking = [value for name, value in elements.attributes if name in ("src", "srcset", "href")]
    assert len(asking) == 2 * 8 + 1 and all(value.startswith("data:") for value in asking)
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert "@import" not in html and "url(" not in html
    names = {path.name for path in (run_dir / "report").iterdir()}
    for name in (
        "success", "reward", "reward_by_env", "lag", "overlap", "timeline", "steps", "ledger",
    ):  # fmt: skip
        assert {f"{name}.png", f"{name}-dark.png"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (run_dir / "report").iterdir())


def test_episodes_are_shown_side_by_side(html: str) -> None:
    assert html.count('<article class="task">') == 5
    assert html.count("<h3>Before <span") == html.count("<h3>After <span") == 5
    text = text_of(html)
    assert "get(index=3)" in text and "Sum all numbers" in text and '{"number":0}' in text
    assert "Chosen by rule" in text and "got a better one" in text


def test_a_run_that_has_only_a_config_says_what_is_missing(tmp_path: Path) -> None:
    rundir.prepare(load([BASICS, f"run.dir={tmp_path / 'dry'}"]))
    html = page.write(tmp_path / "dry").read_text(encoding="utf-8")
    assert html.count('<p class="missing">') == len(page.SECTIONS) + 1
    assert "ended early" in html and "No evaluation episode was recorded" in html
    assert "<img" not in html


def test_a_run_that_was_interrupted_is_judged_by_its_files(tmp_path: Path) -> None:
    played = Played(tmp_path / "run")
    played.evaluate("before", BEFORE)
    played.train(steps=2)
    played.queue.cancel_all()
    played.files.close()
    found = digest(played.run_dir)
    assert page.status(found) == "ended early"
    assert page.balance(played.run_dir, found).is_sound
    assert found.timeline.shares() is not None  # up to the last event
    (part,) = (played.run_dir / "rollouts").glob("part_*.jsonl")
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[1:]))
    balance = page.balance(played.run_dir, found)
    assert balance.is_sound is False and "expected" in balance.text
    html = page.write(played.run_dir).read_text(encoding="utf-8")
    assert "The ledger does not balance" in html
    assert "The run has no evaluation after training." in html
    assert "This run has no such episode." in html


def test_a_run_that_still_plays_says_so(tmp_path: Path) -> None:
    played = Played(tmp_path / "run")
    played.train(steps=1)
    played.queue.start(played.queue.create(make_task()), actor="actor-0", version=1)
    played.files.close()
    processes.write_pids(played.run_dir, [processes.describe("launch", os.getppid())])
    found = digest(played.run_dir)
    assert page.status(found) == "running"
    assert page.balance(played.run_dir, found).is_sound is None
    assert found.timeline.num_drawn - sum(found.timeline.ends.values()) == 1
    # A driver whose run failed makes the report itself, and is about to end.
    processes.write_pids(played.run_dir, [processes.describe("launch")])
    assert page.status(digest(played.run_dir)) == "ended early"


def test_half_a_line_and_a_broken_one_do_no_harm(tmp_path: Path, run_dir: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(run_dir, torn)
    whole = digest(torn)
    for name in ("events.jsonl", "metrics.jsonl", "rollouts/eval_after.jsonl"):
        with (torn / name).open("ab") as file:
            file.write(b'{"kind":"bu')
    assert digest(torn) == whole
    assert audit.recompute(torn) == audit.recompute(run_dir)
    with (torn / "events.jsonl").open("ab") as file:
        file.write(b'{"format":1}\n')  # another writer went on in the half line
    broken = digest(torn)
    assert broken.unreadable == {"events.jsonl": 1}
    assert broken.timeline.moves == whole.timeline.moves


@pytest.mark.parametrize("content", [None, '{"model_type": "qwen3"}', "{"])
def test_what_is_no_run_directory_is_named(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="no run directory"):
        page.write(tmp_path)
    assert launch.main(["report", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert launch.main(["report"]) == 2
    assert "one run directory" in capsys.readouterr().err


def test_a_report_that_fails_is_a_warning_with_the_command_to_redo_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run.make_report(tmp_path)
    (record,) = caplog.records
    assert f"python launch.py report {tmp_path}" in record.getMessage()


def verdict(env: str, reward: float, actions: int = 0, task_id: str = "t") -> Verdict:
    return Verdict(group_id="g", sample=0, task_id=task_id, env=env, reward=reward, actions=actions)


def test_other_tasks_in_the_same_places_are_not_compared() -> None:
    places = [Place("fresh", "sampled", number) for number in range(2)]
    before = {place: verdict("a", 0.0) for place in places}
    after = {places[0]: verdict("a", 1.0, task_id="u"), places[1]: verdict("a", 1.0)}
    assert changes(before, after)["fresh", "sampled"] == Changes(gained=1, lost=0, same=0)
    assert choose(before, after, ["fresh"]) == [places[1], places[0]]


def test_a_task_with_several_samples_is_one_task() -> None:
    first = Place("fresh", "sampled", 0)
    before = {first._replace(sample=k): verdict("a", 0.0) for k in range(4)}
    after = {place: verdict("a", float(place.sample > 0)) for place in before}
    assert changes(before, after)["fresh", "sampled"] == Changes(gained=0, lost=0, same=1)
    assert choose(before, after, ["fresh"]) == [first]


def test_changed_verdicts_are_shown_first_then_changed_calls_then_new_environments() -> None:
    places = [Place(set="fresh", mode="sampled", number=i) for i in range(7)]
    before = dict(zip(places, [verdict("a", 0.0)] * 6 + [verdict("b", 0.0)], strict=True))
    after = before | {places[5]: verdict("a", 1.0), places[3]: verdict("a", 0.0, actions=1)}
    chosen = [place.number for place in choose(before, after, ["fresh"])]
    assert chosen == [5, 3, 6, 0, 1]


def test_sampled_episodes_come_before_greedy_ones() -> None:
    places = [Place(set="s", mode=mode, number=0) for mode in ("greedy", "sampled")]
    before = {place: verdict("a", 0.0) for place in places}
    after = {place: verdict("a", 1.0) for place in places}
    assert [place.mode for place in choose(before, after, ["s"])] == ["sampled", "greedy"]


def test_sign_test() -> None:
    assert Changes(gained=0, lost=0, same=5).p_value == 1.0
    assert Changes(gained=5, lost=0, same=0).p_value == pytest.approx(2 / 32)
    assert Changes(gained=1, lost=9, same=0).p_value == pytest.approx(2 * 11 / 1024)


def test_flow_accounts_for_every_group() -> None:
    moves: Counter[tuple[GroupState | None, GroupState]] = Counter(
        {
            (None, GroupState.PENDING): 100,
            (GroupState.PENDING, GroupState.RUNNING): 98,
            (GroupState.RUNNING, GroupState.SCORED): 90,
            (GroupState.RUNNING, GroupState.CANCELLED): 5,
            (GroupState.SCORED, GroupState.QUEUED): 60,
            (GroupState.SCORED, GroupState.FILTERED): 30,
            (GroupState.QUEUED, GroupState.TRAINED): 60,
        }
    )
    ways = flows(moves)
    assert ways["pending", LIVE] == 2 and ways["running", LIVE] == 3
    assert ("queued", LIVE) not in ways
    nodes, bands = layout(ways, 100)
    ends = {node.name: node.number for node in nodes if node.column == 4}
    assert ends == {"trained": 60, "filtered": 30, "cancelled": 5, LIVE: 5}
    for node in nodes:
        leaving = [band for band in bands if band.old == node.name]
        assert sum(band.width for band in leaving) <= node.height + 1e-9
    columns = sorted((n.top, n.top + n.height) for n in nodes if n.column == 4)
    assert all(one[1] < two[0] for one, two in pairwise(columns))


def test_curves_leave_out_what_is_not_there() -> None:
    nan = float("nan")
    assert binned([1, 3, nan, 5, 7], 2) == [2, 5, 7]
    assert running_mean([1, 2, nan, 4], 2) == [1, 1.5, 2, 4]
    assert occupancy([(1, 3), (6, 6.5)], 0, 8, 4) == [0.5, 0.5, 0, 0.25]


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Says of each image how wide it came out, and whether the page is wider than its window.
PROBE = """<script>addEventListener("load", () => {
  const widths = [...document.images].map(image => image.naturalWidth);
  const page = document.documentElement;
  document.title = "probed " + JSON.stringify([widths, page.scrollWidth - page.clientWidth]);
});</script></body>"""


def browse(address: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no browser was found to open the page in: apt-get install chromium")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--enable-logging=stderr", "--window-size=500,900"]
    command += [f"--user-data-dir={profile}", "--dump-dom", address.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)


@pytest.mark.timeout(240)
def test_a_browser_shows_it_whole_and_has_nothing_to_complain_of(
    run_dir: Path, html: str, tmp_path: Path
) -> None:
    shown = browse(run_dir / "report.html", tmp_path / "profile")
    assert "CONSOLE" not in shown.stderr
    assert "How it plays, before and after" in shown.stdout
    # The page forbids scripts; this copy allows one.
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert probed != html
    (tmp_path / "probed.html").write_text(probed.replace("</body>", PROBE), encoding="utf-8")
    shown = browse(tmp_path / "probed.html", tmp_path / "profile")
    title = re.search(r"<title>probed (.*?)</title>", shown.stdout)
    assert title is not None, shown.stderr
    widths, overhang = msgspec.json.decode(title[1])
    assert len(widths) == 8 and min(widths) > 600
    assert overhang <= 0


@pytest.mark.timeout(120)
def test_the_browser_test_would_notice_a_blocked_script(html: str, tmp_path: Path) -> None:
    path = tmp_path / "script.html"
    path.write_text(html.replace("</body>", PROBE), encoding="utf-8")
    assert "CONSOLE" in browse(path, tmp_path / "profile").stderr


def test_a_fault_is_shown_as_one(tmp_path: Path) -> None:
    played = Played(tmp_path / "run")
    evaluation = Evaluation({"fresh": [make_task(number=1)]}, "before")
    for grant in evaluation.next(10):
        played.books.evaluated(evaluation, fault(grant))
    played.files.close()
    html = page.write(played.run_dir).read_text(encoding="utf-8")
    assert '<span class="pill fault">no verdict</span>' in html
    assert "env_error: it broke" in html
    assert table_rows(html)["fresh, sampled"] == ["-", "-", "-", "-", "-", "0", "1"]


def fault(grant: Grant) -> Rollout:
    return make_rollout(grant.group_id, 0, stop=StopReason.ENV_ERROR)
