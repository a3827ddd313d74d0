"""The body of `POST /pools`: a pool to add, validated as a recipe is."""

import re
from dataclasses import dataclass

import msgspec

from configs.load import ConfigError, convert
from configs.schema import PoolSection

# Names end up in task ids, keys of metrics and paths.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class _Pools(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So that a mistake is named as one in a recipe would be."""

    pools: dict[str, PoolSection]


@dataclass(slots=True, kw_only=True, frozen=True)
class PoolOrder:
    """A pool to draw from."""

    name: str
    section: PoolSection
    replace: bool

    @classmethod
    def read(cls, body: bytes) -> "PoolOrder":
        """Raises ConfigError with field, value and cure."""
        try:
            tree = msgspec.json.decode(body)
        # Neither text nor nesting may be anything.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"the body is not JSON: {error}") from error
        if not isinstance(tree, dict):
            raise ConfigError("the body must be a JSON object with name and source")
        name, replace = tree.pop("name", None), tree.pop("replace", False)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"name={name!r} must be a text of letters, digits, - and _: it names the pool in task "
                "ids and metrics"
            )
        if not isinstance(replace, bool):
            raise ConfigError(f"replace={replace!r} must be true or false")
        return cls(
            name=name, section=convert({"pools": {name: tree}}, _Pools).pools[name], replace=replace
        )
