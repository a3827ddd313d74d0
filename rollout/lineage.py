"""How old a version is where numbers were skipped.

A version number is never reused, so a resumed run begins with one above all that were ever published,
though its weights are those of its checkpoint. Age is counted in publishes of the surviving history:

    published    0 ... 40 41 .. 57          a checkpoint of 40; the run was killed at 57
    surviving    0 ... 40 | 58 59 ...       58 holds the weights of the checkpoint
    place        0 ... 40 | 40 41 ...
"""

import msgspec


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Places of versions in a run's surviving history. `skips` ascend."""

    skips: tuple[tuple[int, int], ...] = ()
    """The first version after each resume, and how many numbers it skipped."""

    def place(self, version: int) -> int:
        """How many publishes lie before `version`."""
        return version - sum(count for first, count in self.skips if version >= first)

    def version(self, place: int) -> int:
        """The newest version with this place."""
        version = place
        for first, count in self.skips:
            if version + count >= first:
                version += count
        return version

    def lag(self, version: int, *, at: int) -> int:
        """Publishes from `version` to version `at`; negative when it is newer."""
        return self.place(at) - self.place(version)

    def resumed(self, *, place: int, version: int) -> "Lineage":
        """This history up to `place`, gone on as `version`.

        Raises ValueError unless `version` is above every version up to there.
        """
        newest = self.version(place)
        if version <= newest:
            raise ValueError(f"version {version} is not above {newest}: versions are never reused")
        return Lineage(skips=(*self.skips, (version, version - newest)))
