"""`synth.export`: what is written is played, trained on and imitated, and is whole or says that it is not."""

import ast
import asyncio
import json
import re
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

import launch
from configs.load import find
from configs.schema import EnvPoolSection, PoolSection, RunConfig
from configs.sft import MessagesRow
from configs.synth import SplitRecipe, SynthRecipe
from envpool import folder, sandbox
from envpool.env import call_text
from envpool.pool import EnvPool
from envpool.task import VARIATION, Split, Task, config_split
from envpool.varied import playable
from learner.demonstrations import encode
from rollout.tokens import ChatTokens
from synth import atomic, pool_files
from synth.exchange import Instance, demonstration, tools_of
from synth.export import TraceRow, contents, export, faults, read_manifest
from synth.filters import Quarantined
from synth.pool_files import module_name, pools_of
from synth.records import Made
from synth.splits import Side, Splits, split
from synth.vary import draw_kinds, vary
from tests.synth.made import draw, make

ROOT = Path(__file__).parent.parent.parent
TRUSTS = [True, pytest.param(False, marks=pytest.mark.skipif(bool(sandbox.lacking()), reason="-"))]
RECIPE = SynthRecipe(split=SplitRecipe(validation=0.25, test=0.25))


@pytest.fixture(scope="module")
def made() -> list[Made]:
    configs = [draw(seed) for seed in range(24)]
    hard = make("largest", "max(numbers)", concept="order", configs=configs)
    tasks = tuple(
        msgspec.structs.replace(task, level=number % 2) for number, task in enumerate(hard.tasks)
    )
    return [
        make("total", "sum(numbers)", concept="sums", configs=configs),
        make("statistics", "sum(numbers) // len(numbers)", concept="sums", configs=configs),
        msgspec.structs.replace(hard, tasks=tasks),
        make("test_first", "numbers[0]", concept="ends", configs=configs),
        make("last", "numbers[-1]", concept="ends", configs=configs),
        make("spread", "max(numbers) - min(numbers)", concept="spread", configs=configs),
    ]


@pytest.fixture(scope="module")
def splits(made: list[Made]) -> Splits:
    return split(made, RECIPE.split)


@pytest.fixture(scope="module")
def out(made: list[Made], splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made")
    told = {"README.md": b"# Made\n", "report.json": b"{}"}
    lost = [Quarantined(env="total", problem="total", task=made[0].tasks[0], reason="never won")]
    export(path, made=made, splits=splits, recipe=RECIPE, quarantined=lost, told=told)
    return path


def rows(path: Path, kind: type[msgspec.Struct]) -> list:
    return msgspec.json.Decoder(kind).decode_lines(path.read_bytes())


@pytest.mark.parametrize("trusted", TRUSTS)
async def test_the_pools_play_their_tasks(out: Path, splits: Splits, *, trusted: bool) -> None:
    traces = await asyncio.to_thread(rows, out / "traces.jsonl", TraceRow)
    sections = {
        side.value: PoolSection(source=str(out / "pool" / side), trusted=trusted) for side in Side
    }
    async with await EnvPool.start(sections, limits=EnvPoolSection()) as pool:
        versions = pool.versions()
        assert {name: tuple(sorted(envs)) for name, envs in pool.envs().items()} == {
            side.value: splits.of(side) for side in Side
        }
        for trace in [*traces[:4], *traces[-4:]]:
            task = Task(
                pool=trace.split,
                pool_version=versions[trace.split],
                env=trace.env,
                config=trace.config,
                seed=1,
            )
            async with pool.session(task) as session:
                assert session.prompt == trace.prompt
                rewards = []
                for call in trace.calls:
                    told = await session.step(call_text(call.name, call.arguments))
                    assert told.observation == call.observation
                    rewards.append(told.reward)
                assert rewards[-1] == 1.0


def test_the_pools_list_every_task_and_no_answer(out: Path, made: list[Made]) -> None:
    tasks = [
        row for side in Side for row in rows(out / "pool" / side / "tasks.jsonl", folder.TaskRow)
    ]
    told = {(row.env, row.level, json.dumps(row.config)) for row in tasks}
    assert told == {
        (one.draft.env, task.level, json.dumps(task.config)) for one in made for task in one.tasks
    }
    lines = (out / "pool" / "train" / "tasks.jsonl").read_text().splitlines()
    assert all(json.loads(line).keys() == {"env", "config", "level"} for line in lines)


@pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))
def test_a_run_takes_the_recipes(out: Path, tmp_path: Path, splits: Splits) -> None:
    for name, command in (("train.toml", []), ("eval.toml", ["eval"])):
        run_dir = tmp_path / name
        arguments = [*command, "local.toml", str(out / name), f"run.dir={run_dir}", "--dry-run"]
        assert launch.main(arguments) == 0
        text = msgspec.json.decode((run_dir / "config.json").read_bytes())
        config = msgspec.convert({key: text[key] for key in text if key != "format"}, RunConfig)
        assert config.rollout.max_turns == 22
        sides = {pool: section.split for pool, section in config.pools.items()}
        assert (sides.pop("tiny"), sides.pop("unseen")) == ("train", "eval")
        if name == "train.toml":
            assert sides == {"train": "train", "validation": "eval"}
            assert config.pools["train"].train == list(splits.train)
        else:
            assert sides == {"test": "eval"}
        for key, spec in config.eval.sets.items():
            pool = key.split("_level")[0]
            if pool in sides:
                assert {env.split("/")[0] for env in spec.envs} == {pool}


def test_recipes_leave_out_what_a_run_cannot_draw(made: list[Made]) -> None:
    total = made[0]
    of = {
        kind: tuple(t for t in total.tasks if config_split("total", t.config) is kind)
        for kind in Split
    }
    assert of[Split.EVAL] and of[Split.TRAIN]

    def only(kind: Split) -> dict[str, bytes]:
        one = msgspec.structs.replace(total, tasks=of[kind])
        return pool_files.recipes({"train": [one], "test": [one]})

    assert only(Split.EVAL).keys() == {"eval.toml"}
    assert only(Split.TRAIN).keys() == {"train.toml", "eval.toml"}


def test_recipes_measure_on_all_tasks_of_what_is_never_trained_on(made: list[Made]) -> None:
    total, largest = made[0], made[2]
    files = pool_files.recipes({"train": [total], "validation": [total], "test": [total, largest]})
    (validation,) = re.findall(rb"count = (\d+)", files["train.toml"])
    assert int(validation) == len(total.tasks) == 24
    # As many of each: 12 tasks of `largest` are of level 0, and as many of level 1, which the other lacks.
    assert re.findall(rb"count = (\d+)", files["eval.toml"]) == [b"24", b"12"]


def test_demonstrations_are_taken_by_the_warm_start(out: Path, splits: Splits) -> None:
    demonstrations = rows(out / "export" / "sft.jsonl", MessagesRow)
    assert {row.env for row in demonstrations} == set(splits.train)
    tokens = ChatTokens.load(find("tiny_policy/policy"))
    for row in demonstrations[:3]:
        learned = encode(row, tokens)
        assert sum(int(one.mask.sum()) for one in learned) > 0
        last = row.messages[-1]
        assert last.role == "assistant" and '"name": "done"' in last.content


def test_varied_tasks_are_shown_their_own_tools(made: list[Made]) -> None:
    total = made[0]
    for seed in range(20):
        rng = Random(seed)
        kinds = draw_kinds(["rename", "permute", "distract", "paginate"], rng)
        variation = vary(total.tools, rng, kinds, trace=total.tasks[0].trace)
        config = {**total.tasks[0].config, VARIATION: variation}
        task = msgspec.structs.replace(total.tasks[0], config=config)
        names: dict[str, Any] = {"__name__": "total"}
        exec(compile(total.draft.source, "total", "exec"), names)
        player = playable(names["Total"](), config)
        player.reset(seed=0, options=config)
        assert tools_of(total, task) == player.tools()
        assert demonstration(total, task).tools == tools_of(total, task)
    assert tools_of(total, total.tasks[0]) == total.tools


def test_instances_have_the_fields_of_the_format(out: Path, made: list[Made]) -> None:
    instances = rows(out / "export" / "instances.jsonl", Instance)
    assert len(instances) == sum(len(one.tasks) for one in made)
    line = json.loads((out / "export" / "instances.jsonl").read_text().splitlines()[0])
    assert line.keys() >= {
        "ability", "answer", "code_id", "data_source", "extra_info", "plugin_call_max_round",
        "prompt", "reward_model",
    }  # fmt: skip
    assert line["reward_model"] == {"ground_truth": None, "style": "agent_env"}
    assert line["plugin_call_max_round"] == RECIPE.filters.max_calls
    by_env = {one.draft.env: one for one in made}
    for instance in instances:
        version, rest = instance.ability.split("@", 1)
        code_id, rest = rest.split("__", 1)
        name, config = rest.split("@", 1)
        assert (version, code_id) == ("codegym_v1", instance.code_id)
        one = by_env[folder.env_id_of(name)]
        assert f"class {name}(ToolEnv)" in instance.extra_info.gym_env
        assert ast.literal_eval(config) in [task.config for task in one.tasks]
        assert [message.role for message in instance.prompt] == ["system", "user"]
        assert all(f"Function: {tool}" in instance.prompt[0].content for tool in ("get", "done"))
    assert [one.extra_info.index for one in instances] == list(range(len(instances)))


def test_the_same_records_give_the_same_content(
    out: Path, made: list[Made], splits: Splits, tmp_path: Path
) -> None:
    first = read_manifest(out)
    assert first is not None and not faults(out)
    assert sum(first.tasks.values()) == 24 * 6 and sum(first.envs.values()) == 6
    told = {"README.md": b"# Other words\n"}
    again = export(tmp_path, made=made[::-1], splits=splits, recipe=RECIPE, told=told)
    # Without the quarantined task.
    assert again.content != first.content
    lost = [Quarantined(env="total", problem="total", task=made[0].tasks[0], reason="never won")]
    again = export(
        tmp_path, made=made[::-1], splits=splits, recipe=RECIPE, quarantined=lost, told=told
    )
    assert again.content == first.content
    assert again.files["README.md"] != first.files["README.md"]


def test_an_earlier_result_leaves_nothing(made: list[Made], splits: Splits, tmp_path: Path) -> None:
    export(tmp_path, made=made, splits=splits, recipe=RECIPE)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "kept.json").write_text("{}")
    fewer = [one for one in made if one.draft.concept == "sums"]
    fewer_splits = Splits(train=("statistics", "total"), validation=(), test=())
    export(tmp_path, made=fewer, splits=fewer_splits, recipe=RECIPE)
    assert not faults(tmp_path)
    assert sorted(path.name for path in (tmp_path / "pool").rglob("*") if path.is_file()) == [
        "env_statistics.py", "tasks.jsonl", "total.py",
    ]  # fmt: skip
    assert (tmp_path / "work" / "kept.json").exists()
    assert not (tmp_path / "eval.toml").exists()


def test_a_changed_file_is_told(
    out: Path, made: list[Made], splits: Splits, tmp_path: Path
) -> None:
    export(tmp_path, made=made, splits=splits, recipe=RECIPE)
    source = next((tmp_path / "pool" / "train").glob("*.py"))
    source.write_text(source.read_text() + "# more\n")
    (tmp_path / "traces.jsonl").unlink()
    (tmp_path / "pool" / "other.py").write_text("")
    name = source.relative_to(tmp_path).as_posix()
    assert faults(tmp_path) == [
        f"{name}: not the text that was written",
        "traces.jsonl: No such file or directory",
        "pool/other.py: not part of the result",
    ]
    (tmp_path / "manifest.json").write_text("{")
    (fault,) = faults(tmp_path)
    assert "not whole" in fault


def test_a_full_disk_leaves_no_whole_result(
    made: list[Made], splits: Splits, tmp_path: Path
) -> None:
    export(tmp_path, made=made, splits=splits, recipe=RECIPE)
    records = tmp_path / "records.json"
    records.write_bytes(msgspec.json.encode({"made": made, "splits": splits}))
    # No file may grow beyond what a source takes, so that the larger ones fail.
    code = f"""
    import msgspec, resource, sys
    from configs.synth import SynthRecipe
    from synth import atomic
    from synth.export import export
    from synth.records import Made
    from synth.splits import Splits
    class Records(msgspec.Struct):
        made: list[Made]
        splits: Splits
    records = msgspec.json.decode(open({str(records)!r}, "rb").read(), type=Records)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        export(__import__("pathlib").Path({str(tmp_path)!r}), made=records.made,
               splits=records.splits, recipe=SynthRecipe())
    except atomic.WriteError as error:
        sys.exit(f"WriteError: {{error}}")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stderr and "make room" in done.stderr
    assert "not whole" in faults(tmp_path)[0]
    assert not list(tmp_path.rglob("*.partial"))
    # And with room again it is.
    export(tmp_path, made=made, splits=splits, recipe=RECIPE)
    assert not faults(tmp_path)


def test_a_file_is_there_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    atomic.write(path, b"one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(
            atomic.WriteError, match=r"deep/file could not be written \(101 bytes\)"
        ):
            atomic.write(path, b"x" * 101)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [one.name for one in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() == b"one"


def test_names_that_are_taken_are_changed() -> None:
    names = ["total", "statistics", "test_first", "envpool", "numpy", "_private"]
    assert [module_name(name) for name in names] == [
        "total", "env_statistics", "env_test_first", "env_envpool", "env_numpy", "env__private",
    ]  # fmt: skip


def test_two_environments_of_one_id_are_refused(made: list[Made]) -> None:
    splits = Splits(train=("total",), validation=(), test=())
    with pytest.raises(ValueError, match="several environments have the id total"):
        contents([made[0], made[0]], splits=splits, recipe=RECIPE)


def test_a_large_side_goes_on_in_another_pool(
    made: list[Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = Splits(train=tuple(sorted(one.draft.env for one in made)), validation=(), test=())
    monkeypatch.setattr(pool_files, "MAX_BYTES", pool_files._SPARE_BYTES + 9_000)
    pools = pools_of(made, splits)
    assert list(pools) == ["train", "train_2", "train_3"]
    files = pool_files.pool_files(pools)
    for pool in pools:
        size = sum(len(data) for name, data in files.items() if name.startswith(f"pool/{pool}/"))
        assert size <= 9_000
    assert sum(len(envs) for envs in pools.values()) == 6
    recipe = pool_files.recipes(pools)["train.toml"].decode()
    assert recipe.count("[pools.train") == 3
