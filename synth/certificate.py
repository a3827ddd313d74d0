"""How many calls any agent needs at least to be sure of an answer: the shortcut certificate.

Configurations with the same statement in which the true answer would be wrong are alternatives: an agent
that has not told them all from the true one cannot know its answer. What each call tells apart is found by
playing them at once (`synth/inside/explorer.py`); the fewest calls that tell all apart are a least hitting
set, or bounded from below by one.

It holds for the alternatives that were sampled and for arguments from a bounded domain, and no further:

- More alternatives can only make more calls necessary. Arguments outside the domain may tell more apart
  at once than those inside.
- Alternatives that the oracle's own calls do not tell apart are left out: the environment is not made for
  them, as the oracle would be wrong there.
- Where not all states could be looked at (`is_sampled`), a call from one that was not may tell more apart.
- It knows only tools that are declared, and nothing of the world: an agent that knows which configurations
  are likely, or what words mean, may guess with fewer calls. Of tasks with several right answers it bounds
  what it takes to be sure of the reference.
"""

from collections.abc import Sequence
from typing import Any

from configs.synth import VerifyRecipe
from envpool.task import Config
from synth.court import INSIDE, Desk, told
from synth.records import Certificate, Move

# The time is CPU time, as what is found must not depend on who else is on the machine: by the clock it may
# take this many times as long, and a little more for the last state and the cover.
PATIENCE, GRACE_S = 4, 10.0


def longest_s(recipe: VerifyRecipe) -> float:
    """What a certificate may take by the clock."""
    return PATIENCE * recipe.certificate_s + GRACE_S


async def certify(
    desk: Desk,
    config: Config,
    others: Sequence[Config],
    trace: Sequence[Move],
    *,
    level: int,
    recipe: VerifyRecipe,
) -> Certificate:
    """The certificate of a task whose oracle made the calls of `trace`. Raises JobFault.

    `others`: configurations known beside it, alternatives perhaps.
    """
    arguments: dict[str, Any] = {
        "config": config,
        "others": list(others),
        "trace": [[m.name, m.arguments, m.observation] for m in trace if m.name != "done"],
        "count": recipe.alternatives,
        "level": level,
        "seed": recipe.seed,
        "allowed_s": recipe.certificate_s,
        "wanted": recipe.min_certificate,
    }
    timeout_s = longest_s(recipe)
    found = await desk.run(f"{INSIDE}.explorer:certify", arguments, timeout_s=timeout_s)
    return told(found, Certificate)


def too_short(certificate: Certificate, recipe: VerifyRecipe) -> str:
    """What a certificate below `verify.min_certificate` says of its task, with the cure."""
    wanted, others = recipe.min_certificate, certificate.alternatives
    if not others:
        return (
            "not proven: no other configuration with this statement and another answer was found: let "
            "inputs differ more"
        )
    if certificate.is_exact:
        return (
            f"{certificate.calls} calls tell it from {others} others: at least {wanted} are wanted: hide "
            "more, or let a call show less"
        )
    return (
        f"not proven: at least {wanted} calls are wanted, and {certificate.calls} were proven to be needed "
        f"to tell it from {others} others: there is a shortcut, or the bounded work ended first; to "
        f"prove more raise verify.certificate_s={recipe.certificate_s:g} or "
        f"verify.alternatives={recipe.alternatives}"
    )
