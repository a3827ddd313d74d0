"""README.md's own environment beside its recipe, in a directory that nothing else imports from."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import launch
from rollout import rundir
from rollout.resume import _config
from tests.test_readme import block

ROOT = Path(__file__).parent.parent


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_pool.py").write_text(block("python"))
    path = folder / "mine.toml"
    path.write_text(block("toml"))
    return path


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_it_is_played_from_another_directory(recipe: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, str(ROOT / "launch.py"), "mine/mine.toml", f"run.dir={run_dir}"]
    settings = ["learner.steps=0", "eval.sets.mine.count=4"]
    done = subprocess.run(
        [*command, *settings], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 envs, from mine/my_pool.py, sandbox: none\n" in done.stdout
    rows = (run_dir / "rollouts" / "eval_before.jsonl").read_text().splitlines()
    assert len(rows) == 8
    assert all(msgspec.json.decode(row)["reward"] is not None for row in rows)


def test_a_run_that_goes_on_imports_from_where_it_did(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    run_dir = tmp_path / "run"
    sys.modules.pop("my_pool", None)
    try:
        assert launch.main([str(recipe), f"run.dir={run_dir}", "--dry-run"]) == 0
    finally:
        del sys.modules["my_pool"]
    path = run_dir / rundir.CONFIG
    assert _config(path, [], run_dir, "here").run.imports == [str(recipe.parent)]
