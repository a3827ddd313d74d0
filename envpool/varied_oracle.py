"""How an oracle of the plain task wins the varied one: by what any policy could do."""

from collections.abc import Generator

from envpool.env import Oracle
from envpool.tools import Arguments
from envpool.variation import DONE, Permute, Rename, Variation, read_page, without_noise


def varied_oracle(oracle: Oracle, variation: Variation) -> Oracle:
    """Calls by their new names, again where they failed, and whole observations without noise."""
    name, arguments = next(oracle)
    while True:
        if name == DONE:
            observation = yield name, arguments
        else:
            observation = yield from _asked(name, arguments, variation)
        try:
            name, arguments = oracle.send(observation)
        except StopIteration:
            return


def _asked(
    name: str, arguments: Arguments, variation: Variation
) -> Generator[tuple[str, Arguments], str, str]:
    """Makes one call of the plain task; what the plain task would have answered is returned."""
    shown = variation.rename.get(name, Rename()).name or name
    names = variation.permute.get(name, Permute()).names
    given = {names.get(key, key): value for key, value in arguments.items()}
    observation = yield shown, given
    while variation.fail is not None and observation == variation.fail.message:
        observation = yield shown, given
    if variation.paginate is not None:
        observation, num_pages = read_page(observation)
        for page in range(2, num_pages + 1):
            part, _ = read_page((yield variation.paginate.tool, {"page": page}))
            observation += part
    if variation.noise is not None:
        observation = without_noise(observation, variation.noise)
    return observation
