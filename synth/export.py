"""The result of the factory: a directory that runs train on, and that others can read.

    pool/{train,validation,test}/<env>.py, tasks.jsonl     what runs play
    train.toml, eval.toml                                   the same as settings of a run
    traces.jsonl                                            tasks with answers and winning calls
    quarantine.jsonl                                        tasks that nobody was seen to win
    export/instances.jsonl, export/sft.jsonl                the same for other trainers
    report.json, report.md, report.html                     what became of the problems (synth/report.py)
    README.md                                               what this is
    manifest.json                                           hashes of all of it, written last

A directory without a manifest is not whole. Answers never lie in a pool: its processes could read them.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from configs.synth import SynthRecipe
from envpool.task import Config
from synth import atomic
from synth.exchange import demonstration, instances
from synth.filters import Quarantined
from synth.pool_files import Files, pool_files, pools_of, recipes
from synth.records import Certificate, Draft, Made, MadeTask, Move, PassRate
from synth.splits import Side, Splits, check

FORMAT = 1
MANIFEST = "manifest.json"
# Directories that hold nothing but results, and files that not every result has: what is no part of the
# new one is removed.
OWNED, OPTIONAL = ("pool", "export"), ("train.toml", "eval.toml")
# Files whose text depends on the machine and the hour: they are hashed, but are no content.
_TELLING = ("README.md", "report.json", "report.md", "report.html")
_PACKAGES = ("millrace", "msgspec", "gymnasium", "numpy")


class TraceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `traces.jsonl`: all that is known of a task."""

    env: str
    problem: str
    """Id of what it was made from: who has other solutions of it can tell whether the answer is right."""
    split: str
    config: Config
    level: int
    prompt: str
    answer: Any
    calls: tuple[Move, ...]
    certificate: Certificate | None
    guess_rate: float
    random_rate: float
    pass_rate: PassRate | None

    @classmethod
    def of(cls, draft: Draft, split: str, task: MadeTask) -> "TraceRow":
        """The line of a task."""
        return cls(
            env=draft.env,
            problem=draft.problem,
            split=split,
            config=task.config,
            level=task.level,
            prompt=task.prompt,
            answer=task.answer,
            calls=task.trace,
            certificate=task.certificate,
            guess_rate=task.guess_rate,
            random_rate=task.random_rate,
            pass_rate=task.pass_rate,
        )


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the result."""

    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a whole result holds."""

    format: int = FORMAT
    content: str
    """SHA-256 over the paths and hashes of all files that the same recipe gives again."""
    files: dict[str, File]
    """By path in the directory; this one is not among them."""
    envs: dict[str, int]
    """Environments by side."""
    tasks: dict[str, int]
    """Tasks by side."""
    recipe: SynthRecipe
    versions: dict[str, str]
    """Of Python and the packages that decide what comes out."""


def export(
    out: Path,
    *,
    made: Sequence[Made],
    splits: Splits,
    recipe: SynthRecipe,
    quarantined: Sequence[Quarantined] = (),
    told: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Write the result to `out`. `told` are files of words by name, such as the card and the report.

    Blocks. A result that was there is replaced; until the manifest is back it is no result. Raises
    atomic.WriteError (a full disk, say), SplitError, and ValueError for environments of one id.
    """
    files = contents(made, splits=splits, recipe=recipe, quarantined=quarantined)
    files |= told or {}
    manifest = _manifest(files, made, splits, recipe)
    atomic.remove(out / MANIFEST)
    for name, data in files.items():
        atomic.write(out / name, data)
    _remove_others(out, files)
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    atomic.write(out / MANIFEST, text)
    return manifest


def contents(
    made: Sequence[Made],
    *,
    splits: Splits,
    recipe: SynthRecipe,
    quarantined: Sequence[Quarantined] = (),
) -> Files:
    """All files but those of words, by path. The same records give the same bytes."""
    check(splits, made)
    names = [one.draft.env for one in made]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"several environments have the id {', '.join(twice)}: they need their own"
        )
    made = sorted(made, key=lambda one: one.draft.env)
    sides = [splits.side_of(one.draft.env).value for one in made]
    pools = pools_of(made, splits)
    files = {**pool_files(pools), **recipes(pools)}
    files["traces.jsonl"] = _lines(
        TraceRow.of(one.draft, side, task)
        for one, side in zip(made, sides, strict=True)
        for task in one.tasks
    )
    files["quarantine.jsonl"] = _lines(quarantined)
    rows = instances(made, sides, max_calls=recipe.filters.max_calls)
    files["export/instances.jsonl"] = _lines(rows)
    files["export/sft.jsonl"] = _lines(
        demonstration(one, task)
        for one, side in zip(made, sides, strict=True)
        if side == Side.TRAIN
        for task in one.tasks
    )
    return files


def read_manifest(out: Path) -> Manifest | None:
    """The manifest of a result; None where there is none, or not a whole one."""
    try:
        return msgspec.json.decode((out / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None


def faults(out: Path) -> list[str]:
    """What in a directory is not as its manifest says; empty for a whole result."""
    manifest = read_manifest(out)
    if manifest is None:
        return [f"{out / MANIFEST} is missing or damaged: the result is not whole; make it again"]
    found = []
    for name, file in manifest.files.items():
        try:
            data = (out / name).read_bytes()
        except OSError as error:
            found.append(f"{name}: {error.strerror}")
            continue
        if hashlib.sha256(data).hexdigest() != file.sha256:
            found.append(f"{name}: not the text that was written")
    here = (path for folder in OWNED for path in (out / folder).rglob("*") if path.is_file())
    others = sorted({path.relative_to(out).as_posix() for path in here} - manifest.files.keys())
    return found + [f"{name}: not part of the result" for name in others]


def _manifest(
    files: Mapping[str, bytes], made: Sequence[Made], splits: Splits, recipe: SynthRecipe
) -> Manifest:
    hashed = {
        name: File(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        for name, data in sorted(files.items())
    }
    content = hashlib.sha256()
    for name, file in hashed.items():
        if name not in _TELLING:
            content.update(f"{name} {file.sha256}\n".encode())
    tasks = {side.value: 0 for side in Side}
    for one in made:
        tasks[splits.side_of(one.draft.env).value] += len(one.tasks)
    return Manifest(
        content=content.hexdigest(),
        files=hashed,
        envs={side.value: len(splits.of(side)) for side in Side},
        tasks=tasks,
        recipe=recipe,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout
            found[name] = "unknown"
    return found


def _remove_others(out: Path, files: Mapping[str, bytes]) -> None:
    """Remove what an earlier result left where only results are."""
    for name in OPTIONAL:
        if name not in files:
            atomic.remove(out / name)
    for folder in OWNED:
        for path in sorted((out / folder).rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(out).as_posix() not in files:
                atomic.remove(path)


def _lines(rows: Any) -> bytes:
    encode = msgspec.json.Encoder().encode
    return b"".join(encode(row) + b"\n" for row in rows)
