"""How a test lets vLLM's workers fail; `tests.faulty_worker` is what then fails."""

from pathlib import Path

from rollout.weights import Manifest

BACKEND = "faulty"
ARGUMENTS = {
    "worker_extension_cls": "tests.faulty_worker.Worker",
    "weight_transfer_config": {"backend": BACKEND},
}

_ONCE = "once "


def spoil(manifest: Manifest, how: str, *, is_once: bool) -> Path:
    """Let a worker `raise`, `die` or `hang` when it has loaded half of these weights.

    Returns a file that is removed when a worker begins to fail, if it does so once.
    """
    path = _file(manifest.path)
    path.write_text(f"{_ONCE if is_once else ''}{how}")
    return path


def taken_fault(weights: str) -> str:
    """How loading the weights in this file is to fail now; empty when it is not."""
    path = _file(weights)
    if not path.exists():
        return ""
    said = path.read_text()
    if said.startswith(_ONCE):
        path.unlink()
    return said.removeprefix(_ONCE)


def _file(weights: str) -> Path:
    return Path(f"{weights}.fault")
