"""The run directory: refused when it is not empty, and what is written there before anything starts."""

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import msgspec

from configs.load import ConfigError
from configs.schema import RunConfig
from rollout.types import FORMAT

CONFIG = "config.json"
# What a resumed run would have for a config, which keeps its own until it begins.
DRY_RUN = "dry_run.json"


def prepare(config: RunConfig) -> Path:
    """Make the run directory and describe config, machine and code in it.

    Raises ConfigError when the directory holds something already.
    """
    name = (
        config.run.dir or f"runs/{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    )
    run_dir = Path(name).expanduser().absolute()
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise ConfigError(
            f"run.dir={name!r} is not empty: a run never writes over another; choose a new "
            "directory, or remove that one"
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.dir={name!r} cannot be made: {error}") from error
    run = msgspec.structs.replace(config.run, dir=str(run_dir))
    write_config(run_dir, msgspec.structs.replace(config, run=run))
    (run_dir / "environment.txt").write_text(_environment())
    revision, diff = _code()
    (run_dir / "code.diff").write_text(f"# revision {revision}\n{diff}")
    return run_dir


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Have the directory to oneself. Raises ConfigError when another process has it."""
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{run_dir}: it is still running, in another process: stop it first"
            ) from None
        except OSError:
            pass  # a file system without locks; pids.json tells, too
        yield
    finally:
        os.close(descriptor)


def write_config(run_dir: Path, config: RunConfig, *, name: str = CONFIG) -> None:
    """Write the resolved config, without secrets; one that was there before is kept beside it."""
    path = run_dir / name
    if name == CONFIG and path.exists():
        earlier = len(list(run_dir.glob("config.*.json")))
        # A copy: killed at any moment, a run has a config to go on from.
        shutil.copyfile(path, run_dir / f"config.{earlier:03d}.json")
    write_json(path, {"format": FORMAT, **msgspec.to_builtins(config.without_secrets())})


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all."""
    partial = path.with_suffix(".tmp")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    partial.replace(path)


def _environment() -> str:
    packages = sorted(f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions())
    lines = [f"python {sys.version}", f"platform {platform.platform()}", f"cpus {os.cpu_count()}"]
    return "\n".join([*lines, *packages, ""])


def _code() -> tuple[str, str]:
    """Revision and uncommitted changes of the checkout, as far as there is one."""
    here = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(here), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return ""

    return git("rev-parse", "HEAD").strip() or "unknown", git("diff", "HEAD")


def short(path: Path) -> str:
    """The path from here, where it is below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def command_line(*words: str) -> str:
    """The way this program was started, with other words; to be pasted into a shell."""
    return " ".join([*_program(), shlex.join(words)])


def _program() -> list[str]:
    program = sys.argv[0]
    if not program.endswith(".py"):
        return [shlex.quote(program)]
    found = shutil.which("python")
    is_ours = found is not None and Path(found).parent == Path(sys.executable).parent
    interpreter = "python" if is_ours else short(Path(sys.executable))
    return [shlex.quote(interpreter), shlex.quote(program)]
