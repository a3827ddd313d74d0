"""Whether a pool's code may run here at all."""

from collections.abc import Mapping

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import sandbox


def refuse_untrusted(sections: Mapping[str, PoolSection], limits: EnvPoolSection) -> None:
    """Raise ConfigError for a pool whose code must not run where too little isolates it."""
    if limits.allow_unsandboxed:
        return
    for name, section in sections.items():
        if not section.trusted and (lacking := sandbox.lacking()):
            reasons = "; ".join(f"{layer}: {why}" for layer, why in lacking.items())
            raise ConfigError(
                f"pools.{name}.trusted=false, and its code cannot be isolated here ({reasons}): set "
                f"pools.{name}.trusted=true if you trust it, or envpool.allow_unsandboxed=true"
            )
