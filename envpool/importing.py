"""Importing what an author wrote: whatever is wrong in it becomes one line with file, line and cure."""

import importlib
from types import ModuleType

from configs.load import ConfigError
from envpool.blame import in_words, raised_at
from envpool.tools import DefinitionError


def import_module(where: str, name: str) -> ModuleType:
    """Import a module of an author; raises ConfigError with file and line of what is wrong in it."""
    try:
        return importlib.import_module(name)
    except DefinitionError as error:
        place = "" if error.place else f"{raised_at(error)}: "
        raise ConfigError(f"{where}: {place}{error}") from error
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{where}: {error}; put it beside the recipe or on PYTHONPATH, or correct the name"
            ) from error
        raise ConfigError(
            f"{where}: {raised_at(error)}: {error}; install it, or correct the import"
        ) from error
    # Whatever an author's module does while it is imported, which may also be sys.exit().
    except (Exception, SystemExit) as error:
        place = f"{raised_at(error)}: " if raised_at(error) else ""
        raise ConfigError(
            f"{where}: {place}{in_words(error)}: correct it; the module could not be imported"
        ) from error
