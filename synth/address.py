"""Where the endpoint is and with which key: what a user has to give, looked at before the first question."""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from configs.load import ConfigError
from configs.synth import FilterRecipe, LlmRecipe

# Sent where no key is needed.
NO_KEY = "none"

_URL_ENV = "OPENAI_BASE_URL"


def section_of(recipe: LlmRecipe | FilterRecipe) -> str:
    """What a recipe's table is called, which mistakes are told by."""
    return "llm" if isinstance(recipe, LlmRecipe) else "filters"


def find_url(recipe: LlmRecipe | FilterRecipe, environ: Mapping[str, str]) -> str:
    """The endpoint's address. Raises ConfigError."""
    field = f"{section_of(recipe)}.base_url"
    name, url = field, recipe.base_url
    if not url:
        name, url = _URL_ENV, environ.get(_URL_ENV, "")
    try:
        parts = urlsplit(url)
        # The port is looked at only when it is asked for.
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_good = is_good and url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(
            f"{name}={shown(url)!r} is no address of an endpoint: set {field} or {_URL_ENV} to that "
            "of an OpenAI-compatible one, e.g. http://localhost:8000/v1"
        )
    return url


def find_key(recipe: LlmRecipe | FilterRecipe, url: str, environ: Mapping[str, str]) -> str:
    """The key, or `NO_KEY` for a server on this machine or its network. Raises ConfigError."""
    key, field = environ.get(recipe.key_env, "").strip(), f"{section_of(recipe)}.key_env"
    if key:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"{field}={recipe.key_env!r}: what this environment variable holds has blanks or "
                "letters that no key has: set it anew"
            )
        return key
    if _is_local(urlsplit(url).hostname or ""):
        return NO_KEY
    raise ConfigError(
        f"{field}={recipe.key_env!r}: this environment variable is not set, and {shown(url)} is no "
        "local server: export it with the key, or name another"
    )


def shown(url: str) -> str:
    """An address without user, password and query, which may be secrets."""
    try:
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
    except ValueError:
        return "(unreadable)"


def _is_local(host: str) -> bool:
    """Whether a host is this machine or on a private network, judged by its name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return address.is_loopback or address.is_private
