"""`launch.py show` over run directories that the project's own writers made."""

import io
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

import launch
from configs.load import load
from rollout import listing, processes, rundir, select, transcript
from rollout.files import PART_ROWS, RolloutRow, RunFiles
from rollout.ledger import ENDS, GroupState, LedgerCounts
from rollout.scores import score
from rollout.summary import BeforeAfter, Summary
from rollout.types import StopReason, Turn
from tests.fakes import make_rollout, make_turn
from tests.recipes import BASICS

ROOT = Path(__file__).parent.parent.parent

BAD = "Error: tools are get, done"
HOSTILE = "[red]x[/red] \x1b[31mred \x9b1m \u202eback\r :smile:"


def make_row(
    group_id: str = "g000000",
    member: int = 0,
    *,
    reward: float | None = 1.0,
    stop: StopReason = StopReason.ANSWERED,
    turns: list[Turn] | None = None,
    env: str = "sum_list",
    state: GroupState | None = GroupState.TRAINED,
    step: int | None = None,
    lag: int | None = None,
    prompt: str = "Sum all numbers.",
) -> RolloutRow:
    rollout = msgspec.structs.replace(
        make_rollout(group_id, member, reward=reward, stop=stop),
        turns=turns if turns is not None else [make_turn()],
        env=env,
        prompt=prompt,
    )
    return RolloutRow.of(
        rollout, config={"numbers": [1, 2]}, group_size=4, state=state, step=step, lag=lag
    )


def call(index: int, action: str, observation: str, *, is_bad_call: bool = False) -> Turn:
    return msgspec.structs.replace(
        make_turn(index), action=action, observation=observation, is_bad_call=is_bad_call
    )


def write(run_dir: Path, *rows: RolloutRow, label: str = "") -> Path:
    """Append rows with the run's own writer."""
    files = RunFiles(run_dir)
    for row in rows:
        if label:
            files.evaluation(label, row)
        else:
            files.rollout(row)
    files.close()
    return run_dir


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Six rollouts of three groups, and an evaluation."""
    turns = [
        call(0, '{"name": "get", "arguments": {"index": 0}}', "17"),
        call(1, "no call", BAD, is_bad_call=True),
        call(2, '{"name": "run", "arguments": {"code": "a = 1\\nprint(a)", "n": 2}}', "1"),
    ]
    write(
        tmp_path,
        make_row("g000000", 0, reward=0.0, step=1, lag=0, turns=turns),
        make_row("g000000", 1, reward=1.0, step=1, lag=0),
        make_row("g000001", 0, reward=0.25, step=2, lag=2, env="find_max"),
        make_row("g000001", 1, stop=StopReason.TIMEOUT, step=2, turns=[]),
        make_row("g000002", 0, reward=0.5, state=GroupState.STALE),
        make_row("g000002", 1, reward=0.5, state=GroupState.STALE),
    )
    return write(
        tmp_path,
        make_row("eval/before/fresh.greedy/0", reward=1.0, state=None),
        make_row("eval/before/fresh.sampled/0", reward=0.0, state=None),
        make_row("eval/before/harder.sampled/0", reward=0.0, state=None),
        label="before",
    )


def show(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert launch.main(["show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def found(run_dir: Path, *filters: str) -> list[str]:
    rows = select.select(run_dir, select.parse(filters)).rows
    return [f"{row.group_id}/{row.member}" for row in rows]


def test_a_rollout_reads_as_a_conversation(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = show(capsys, run_dir, "group=g000000", "member=0")
    wanted = [
        "g000000/0 sum_list  reward 0  answered  group trained at step 1, lag 0",
        "task basics/sum_list/0, seed 1",
        "3 turns, 6 sampled tokens of 2, 0.00 s, weights v0",
        'config {"numbers":[1,2]}',
        "  Sum all numbers.\n",
        "   1  get(index=0)  [2 tokens, v0, generated 0.000 s, env 0.000 s]\n      -> 17\n",
        f"   2  BAD CALL no call  [2 tokens, v0, generated 0.000 s, env 0.000 s]\n      -> {BAD}\n",
        "   3  run(code=..., n=2)",
        "      code:\n        a = 1\n        print(a)\n      -> 1\n",
        "1 shown, newest first, of 6 rollouts looked at",
    ]
    position = 0
    for words in wanted:
        position = text.index(words, position)


def test_a_fault_says_what_broke_and_has_no_reward(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = show(capsys, run_dir, "stop=timeout")
    assert "g000001/1 sum_list  no reward  timeout  group trained at step 2, left out" in text
    assert "\n  it broke\n" in text


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (["env=find_max"], ["g000001/0"]),
        (["env!=find_max", "step=2"], ["g000001/1"]),
        (["reward=0"], ["g000000/0"]),
        (["reward<0.5"], ["g000001/0", "g000000/0"]),
        (["reward>=0.5", "state=trained"], ["g000000/1"]),
        (["reward=none"], ["g000001/1"]),
        (["state=stale", "member=1"], ["g000002/1"]),
        (["stop=timeout,env_error"], ["g000001/1"]),
        (["lag=2"], ["g000001/0"]),
        (["lag!=0", "lag!=none"], ["g000001/0"]),
        (["turns>2"], ["g000000/0"]),
        (["bad_calls>0"], ["g000000/0"]),
        (["pool=basics", "limit=2"], ["g000002/1", "g000002/0"]),
        (["order=oldest", "limit=2"], ["g000000/0", "g000000/1"]),
        (["order=longest", "limit=1"], ["g000000/0"]),
        (["order=worst", "limit=2"], ["g000000/0", "g000001/0"]),
        (["eval=before", "mode=sampled"], ["eval/before/harder.sampled/0/0", "eval/before/fresh.sampled/0/0"]),
        (["eval=before", "set=fresh", "reward=1"], ["eval/before/fresh.greedy/0/0"]),
        (["eval=after"], []),
    ],
)  # fmt: skip
def test_filters_hold_together(run_dir: Path, filters: list[str], wanted: list[str]) -> None:
    assert found(run_dir, *filters) == wanted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rewrd=0"], ["'rewrd'", "did you mean reward?", "bad_calls"]),
        (["stop=time"], ["stop=time", "timeout", "context_full"]),
        (["state=queued"], ["state=queued", "trained", "stale"]),
        (["reward=low"], ["reward=low", "no number", "none"]),
        (["env<b"], ["env<b", "= and !="]),
        (["reward"], ["'reward'", "quotes", "key=value"]),
        (["limit=0"], ["limit=0", "from 1"]),
        (["limit=99999999999999999999"], ["limit=9999", "from 1"]),
        (["order=best"], ["order=best", "worst"]),
        (["eval=middle"], ["eval=middle", "before, after"]),
        (["limit<3"], ["limit<3", "= only"]),
        (["set=fresh"], ["set=fresh", "eval=before"]),
        (["--yaml"], ["--yaml", "--json"]),
    ],
)
def test_a_mistake_exits_2_and_says_what_is_possible(
    run_dir: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["show", str(run_dir), *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_a_missing_directory_exits_2(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_dir.parent)
    assert launch.main(["show", "nowhere"]) == 2
    assert "'nowhere' does not exist" in capsys.readouterr().err
    assert launch.main(["show", "reward=0"]) == 2
    assert "directory of a run before reward=0" in capsys.readouterr().err


def test_nothing_found_says_what_was_looked_at(
    run_dir: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    text = show(capsys, run_dir, "env=sum_list", "reward=7")
    assert text == "nothing matches: 6 rollouts looked at, of find_max, sum_list\n"
    only_evaluated = tmp_path_factory.mktemp("evaluated")
    write(only_evaluated, make_row("eval/before/fresh.greedy/0", state=None), label="before")
    text = show(capsys, only_evaluated)
    assert f"no rollouts in {only_evaluated} yet" in text and "eval=before" in text


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_counted(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = run_dir / "rollouts" / "part_0000.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([*lines[:2], b'{"torn\n', *lines[2:], lines[0][:50]]))
    text = show(capsys, run_dir, "limit=9")
    assert text.endswith("6 shown, newest first, of 6 rollouts looked at; 1 lines cannot be read\n")


def test_the_newest_are_found_without_reading_older_parts(tmp_path: Path) -> None:
    rows = [make_row(f"g{number:06}") for number in range(PART_ROWS + 2)]
    write(tmp_path, *rows)
    newest = select.select(tmp_path, select.parse(["limit=2"]))
    assert [row.group_id for row in newest.rows] == ["g005001", "g005000"]
    assert newest.looked_at == 2
    assert found(tmp_path, "limit=3") == ["g005001/0", "g005000/0", "g004999/0"]
    assert found(tmp_path, "limit=1", "order=oldest") == ["g000000/0"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_an_environment_writes_cannot_steer_the_terminal(is_terminal: bool) -> None:
    turns = [call(0, HOSTILE, HOSTILE), call(1, '{"name": "a\\u001b[2J", "arguments": {}}', "")]
    row = make_row(prompt=HOSTILE, stop=StopReason.ENV_ERROR, turns=turns, env="[bold]e\x1b[0m")
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, color_system=None, width=200)
    transcript.write(console, row)
    text = file.getvalue()
    assert not set(text) & {"\x1b", "\x9b", "\u202e", "\r"}
    assert text.count("[red]x[/red] \\x1b[31mred \\x9b1m \\u202eback\\r :smile:") == 3
    assert "a\\x1b[2J()" in text and "[bold]e\\x1b[0m" in text


def test_long_texts_are_cut_and_folded_below_their_beginning() -> None:
    turns = [call(0, '{"name": "get", "arguments": {}}', "word " * 2000)]
    file = io.StringIO()
    transcript.write(Console(file=file, force_terminal=True, width=40), make_row(turns=turns))
    plain = file.getvalue().split("-> ", 1)[1].splitlines()
    assert "(6003 more" in file.getvalue()
    assert all(line.startswith("      word") for line in plain[1:90])
    assert max(len(line) for line in plain) <= 40


def test_json_gives_the_rows_as_they_are(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run_dir, make_row("g000003", prompt=HOSTILE))
    lines = show(capsys, run_dir, "--json", "limit=7").splitlines()
    rows = [msgspec.json.decode(line, type=RolloutRow) for line in lines]
    assert rows == select.select(run_dir, select.parse(["limit=7"])).rows
    assert rows[0].prompt == HOSTILE
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert show(capsys, run_dir, "--json", "env=none") == ""


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_has_enough_is_no_error(tmp_path: Path, form: list[str]) -> None:
    write(tmp_path, *(make_row(f"g{number:06}") for number in range(2000)))
    command = [sys.executable, "launch.py", "show", str(tmp_path), "limit=2000", *form]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_help_names_every_filter(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["show", "--help"]) == 0
    words = capsys.readouterr().out.split()
    assert {*select.TEXTS, *select.NUMBERS, "eval", "order", "limit", "--json"} <= set(words)


def make_summary() -> Summary:
    before = score([make_rollout("a", reward=0.0), make_rollout("b", reward=1.0)])
    after = score([make_rollout("a", reward=1.0), make_rollout("b", reward=1.0)])
    zeros = {state.value: 0 for state in ENDS}
    return Summary(
        eval={"fresh": {"sampled": BeforeAfter(before=before, after=after)}},
        steps=9,
        wall_s=1.0,
        lag_max=2,
        ledger=LedgerCounts(groups=zeros, rollouts=zeros),
        ledger_balanced=True,
    )


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs, one done, one going on, one broken off before its first step; and a stranger."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("done", "going", "broken")):
        run_dir = rundir.prepare(load([BASICS, f"run.dir=runs/{name}", "learner.steps=9"]))
        os.utime(run_dir / "config.json", (age * 1e6, age * 1e6))
    files = RunFiles(tmp_path / "runs" / "done")
    for step in range(1, 10):
        files.metrics({"step": step, "reward/all_mean": step / 10})
    files.close()
    rundir.write_json(tmp_path / "runs" / "done" / "summary.json", make_summary())
    files = RunFiles(tmp_path / "runs" / "going")
    files.metrics({"step": 1, "reward/all_mean": 0.125})
    files.close()
    with (tmp_path / "runs" / "going" / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"step": 2, "rew')
    processes.write_pids(tmp_path / "runs" / "going", [processes.describe("launch")])
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize("arguments", [[], ["runs"]])
def test_runs_are_listed_newest_first(
    runs: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    head, *lines = show(capsys, *arguments).splitlines()
    assert head.split() == ["begun", "state", "steps", "reward", "success", "run"]
    broken, going, done = (line.split()[2:] for line in lines)
    assert broken == ["stopped", "0/9", "-", "-", "runs/broken"]
    assert going == ["running", "1/9", "0.125", "-", "runs/going"]
    assert done == ["done", "9/9", "0.500", "fresh", "0.500", "->", "1.000", "runs/done"]


def test_a_group_is_found_by_its_number(run_dir: Path) -> None:
    for text in ("group=1", "group=g1", "group=g000001", "group=000001"):
        assert found(run_dir, text) == ["g000001/1", "g000001/0"]
    assert found(run_dir, "group=2,eval/x", "member=0") == ["g000002/0"]
    assert len(found(run_dir, "group=eval/before/fresh.greedy/0", "eval=before")) == 1


def test_a_slip_in_a_name_is_told(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "; no env sumlist: did you mean sum_list?" in show(capsys, run_dir, "env=sumlist")
    assert "; no pool basic: did you mean basics?" in show(capsys, run_dir, "pool=basic")
    assert "; no pool xyz: there are basics" in show(capsys, run_dir, "pool=xyz", "env=sum_list")


def test_a_directory_that_is_no_run_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["show", str(tmp_path)]) == 2
    assert f"'{tmp_path}' is not the directory of a run" in capsys.readouterr().err


def test_no_runs_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert show(capsys) == "no runs under runs/ yet: python launch.py makes one\n"
    assert listing.runs(tmp_path) == []


def test_a_fault_says_which_attempt_and_which_weights_it_was() -> None:
    """It has no tokens to train on: its turns know what sampled them."""
    rollout = make_rollout(versions=(3,), stop=StopReason.TIMEOUT, attempt=1)
    output = io.StringIO()
    console = Console(file=output, width=200)
    transcript.write(console, RolloutRow.of(rollout, config={}, group_size=4))
    assert "attempt 2" in output.getvalue() and "weights v3" in output.getvalue()
