"""Imports go one way, and the light parts stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("configs", "envpool", "rollout", "learner", "synth")

ALLOWED = {
    "configs": {"configs"},
    "envpool": {"envpool", "configs"},
    "rollout": {"rollout", "envpool", "configs"},
    "learner": {"learner", "configs", *(f"rollout.{m}" for m in ("types", "tokens", "model"))},
    "synth": {"synth", "envpool", "rollout", "configs"},
}
ALLOWED["learner"] |= {f"rollout.{m}" for m in ("weights", "weight_files", "checkpoints")}
# What the factory has written, and what it was made from.
DATA = ROOT / "configs" / "tiny_pool"


def sources(package: str) -> list[Path]:
    return [path for path in (ROOT / package).rglob("*.py") if DATA not in path.parents]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    wrong = []
    for path in sources(package):
        for name in imported(path):
            is_ours = name.split(".")[0] in (*PACKAGES, "launch")
            prefixes = {".".join(name.split(".")[:depth]) for depth in (1, 2, 3)}
            if is_ours and not prefixes & ALLOWED[package]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_few_import_ray() -> None:
    users = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sources(package)
        if any(name.split(".")[0] == "ray" for name in imported(path))
    }
    # The benchmark of the pool measures Ray, in a process that does nothing else.
    assert users <= {
        "rollout/cluster.py",
        "rollout/ray_hosts.py",
        "rollout/ray_learner.py",
        "rollout/ray_relay.py",
        "envpool/bench/ray_actors.py",
    }


def test_few_import_vllm() -> None:
    users = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sources(package)
        if any(name.split(".")[0] == "vllm" for name in imported(path))
    }
    # What has to be looked at when another version of vLLM is taken.
    rollout = {f"rollout/vllm_{part}.py" for part in ("api", "arguments", "counts")}
    assert users <= {*rollout, "learner/nccl.py"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("configs.load", ("torch", "ray", "vllm", "wandb", "transformers", "numpy")),
        ("rollout.coordinator", ("torch", "ray", "transformers", "vllm", "wandb")),
        ("rollout.cluster", ("torch", "transformers", "vllm", "wandb")),
        ("envpool.zygote", ("torch", "ray", "transformers", "aiohttp", "wandb")),
        ("launch", ("torch", "ray", "numpy", "msgspec")),
    ],
)
def test_import_stays_light(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {forbidden} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_no_file_has_both_sides_of_a_merge() -> None:
    kinds = ("*.py", "*.toml", "*.md", "Makefile")
    folders = (ROOT / name for name in (*PACKAGES, "tests", ".ci"))
    files = [path for kind in kinds for path in ROOT.glob(kind)]
    files += [path for folder in folders for kind in kinds for path in folder.rglob(kind)]
    marks = tuple(mark * 7 + " " for mark in "<>")
    assert not [
        f"{path.relative_to(ROOT)}: {line}"
        for path in files
        for line in path.read_text().splitlines()
        if line.startswith(marks)
    ]


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in (*PACKAGES, "tests")
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 500
    }
    assert not long
