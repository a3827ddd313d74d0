"""`report.html` and `report/*.png` of a run directory: what a person wants to know of a run in a minute.

    files -> digest (numbers) -> sections (words, figures) -> page.html.j2 -> one page, all embedded

The page needs no script and no network, and says in words what a run has no data for. All text is
escaped: environments and policies wrote some of it. A report reads files alone, so it can be made of
any run at any time, also while it plays.
"""

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import msgspec

from rollout import audit
from rollout.ledger import ENDS
from rollout.report.busy import busy_section
from rollout.report.digest import Digest, digest
from rollout.report.flow import ledger_section
from rollout.report.learning import reward_section, set_scores, success_section
from rollout.report.pace import lag_section, step_section
from rollout.report.section import Picture, duration, share
from rollout.report.theme import THEMES, render
from rollout.report.transcripts import RULE, Changes, changes, choose, transcripts

TEMPLATE = "page.html.j2"

# In reading order.
SECTIONS = (
    success_section,
    reward_section,
    lag_section,
    busy_section,
    step_section,
    ledger_section,
)

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["data_uri"] = lambda png: (
    f"data:image/png;base64,{base64.b64encode(png).decode()}"
)


@dataclass(slots=True, kw_only=True, frozen=True)
class Fact:
    """One tile of the headline. `kind` is `good`, `bad` or empty."""

    label: str
    value: str
    note: str
    kind: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class Balance:
    """Whether each group that was drawn is accounted for. `is_sound` is None while it is not known."""

    is_sound: bool | None
    text: str


def write(run_dir: Path) -> Path:
    """Make or renew the report of a run; returns the page. Blocks for some seconds.

    Raises ConfigError when `run_dir` is no run directory, OSError when it cannot be written to.
    """
    found = digest(run_dir)
    before, after = found.verdicts["before"], found.verdicts["after"]
    parts = [section(found) for section in SECTIONS]
    ledger = balance(run_dir, found)
    page = _templates.get_template(TEMPLATE).render(
        name=run_dir.resolve().name,
        place=shlex.quote(str(run_dir.resolve())),
        status=status(found),
        what=what(found),
        outcome=outcome(found),
        facts=facts(found, ledger),
        ledger=ledger,
        sections=parts,
        images=_images(run_dir, [picture for part in parts for picture in part.pictures]),
        tally=tally(list(changes(before, after).values())),
        rule=RULE,
        shown=transcripts(run_dir, choose(before, after, list(found.settings.eval.sets))),
        unreadable=found.unreadable,
    )
    path = run_dir / "report.html"
    partial = path.with_suffix(".tmp")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def status(found: Digest) -> str:
    """Where the run is: `finished`, `running` or `ended early`."""
    if found.summary is not None:
        return "finished"
    return "running" if found.is_alive else "ended early"


def what(found: Digest) -> str:
    """What ran, in a sentence."""
    settings = found.settings
    model = "/".join(Path(settings.model.path).parts[-2:])
    pools = ", ".join(
        f"{name} ({', '.join(pool.train) or 'all its environments'})"
        for name, pool in settings.pools.items()
        if pool.split == "train"
    )
    if not settings.learner.steps:
        return f"Recipe {settings.run.name}: evaluates the model {model}, trains nothing."
    return f"Recipe {settings.run.name}: trains the model {model} on the pool {pools}."


def outcome(found: Digest) -> str:
    """What the first set with both evaluations says, sampled; empty without one."""
    changed = changes(found.verdicts["before"], found.verdicts["after"])
    for one in set_scores(found).get("sampled", []):
        before, after = one.before, one.after
        if before is None or after is None or before.mean is None or after.mean is None:
            continue
        text = (
            f"Success on the evaluation set {one.name}, sampled: {before.mean:.3f} before training, "
            f"{after.mean:.3f} after."
        )
        change = changed.get((one.name, "sampled"))
        if change is None:
            return text
        return (
            f"{text} Of the same tasks {change.gained} got better and {change.lost} worse "
            f"(p = {change.p_value:.2g} if training made no difference)."
        )
    return ""


def facts(found: Digest, ledger: Balance) -> list[Fact]:
    """The tiles of the headline."""
    settings, journal = found.settings, found.journal
    steps = found.steps[-1].step if found.steps else 0
    tiles = [
        Fact(label="optimizer steps", value=f"{steps:,}", note=f"of {settings.learner.steps:,}"),
        Fact(label="wall time", value=_wall(found), note="evaluations included"),
        Fact(
            label="rollouts trained on",
            value=f"{journal.lags.total():,}",
            note=f"of {journal.num_rollouts:,} played",
        ),
    ]
    if journal.lags:
        lag, bound = max(journal.lags), settings.rollout.max_lag
        kind = "" if lag <= bound else "bad"
        tiles.append(Fact(label="largest lag", value=str(lag), note=f"bound {bound}", kind=kind))
    shares = found.timeline.shares()
    if shares is not None:
        note = "engine and learner, of training"
        tiles.append(Fact(label="busy at once", value=share(shares.both), note=note))
    words = {True: "balances", False: "does not balance", None: "not known yet"}
    kinds = {True: "good", False: "bad", None: ""}
    tiles.append(
        Fact(
            label="ledger",
            value=words[ledger.is_sound],
            note=f"{found.timeline.num_drawn:,} groups drawn",
            kind=kinds[ledger.is_sound],
        )
    )
    return tiles


def balance(run_dir: Path, found: Digest) -> Balance:
    """The run's own verdict on its ledger; of a run that left none, one made from its files."""
    if found.summary is not None:
        if found.summary.ledger_balanced:
            text = "What the run counted while it played and what its files say agree."
            return Balance(is_sound=True, text=text)
        return Balance(is_sound=False, text=found.summary.ledger_error)
    if found.is_alive:
        text = "The run still plays: what it counts is compared with its files when it has ended."
        return Balance(is_sound=None, text=text)
    try:
        counts = audit.recompute(run_dir)
    except (audit.AuditError, msgspec.MsgspecError) as error:
        return Balance(is_sound=False, text=f"{type(error).__name__}: {error}")
    named = {state.value: found.timeline.ends[state] for state in ENDS}
    if counts.groups != named:
        text = f"The rollout log gives {counts.groups}, the event log {named}."
        return Balance(is_sound=False, text=text)
    text = "The run left no summary; its rollout log and its event log agree on every group's end."
    return Balance(is_sound=True, text=text)


def tally(counted: Sequence[Changes]) -> str:
    """How many tasks changed their verdict, over all sets and modes."""
    gained, lost, same = (
        sum(getattr(one, key) for one in counted) for key in ("gained", "lost", "same")
    )
    if not counted:
        return ""
    return (
        f"Of {gained + lost + same:,} episodes with a verdict before and after, {gained:,} got a "
        f"better one, {lost:,} a worse one, {same:,} the same."
    )


def _wall(found: Digest) -> str:
    if found.summary is not None:
        return duration(found.summary.wall_s)
    log = found.timeline
    return duration(log.last_s - log.first_s) if log.last_s > log.first_s else "-"


def _images(run_dir: Path, pictures: Sequence[Picture]) -> dict[str, dict[str, bytes]]:
    """PNGs by figure and theme, which also go to `report/`."""
    folder = run_dir / "report"
    folder.mkdir(exist_ok=True)
    images: dict[str, dict[str, bytes]] = {}
    for picture in pictures:
        for theme in THEMES:
            png = render(picture.draw, theme)
            suffix = "" if theme is THEMES[0] else f"-{theme.name}"
            (folder / f"{picture.name}{suffix}.png").write_bytes(png)
            images.setdefault(picture.name, {})[theme.name] = png
    return images
