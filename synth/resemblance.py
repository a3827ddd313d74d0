"""How alike texts are: the share of their word sequences that they have in common, rare ones weighing more.

What all of them say, such as the frame of an environment's source, says little about any two.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

# Words in a sequence: longer ones find copies, shorter ones find topics.
WORDS = 4

_WORD = re.compile(r"[^\W_]+|[^\w\s]")
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)


def similarities(texts: Sequence[str], *, at_least: float) -> Iterator[tuple[int, int, float]]:
    """Each pair of texts that is alike by `at_least` or more (0 to 1): first, second, how much."""
    shingled = [shingles(text) for text in texts]
    known = Counter(shingle for one in shingled for shingle in one)
    # Next to nothing for what all of them say, and never nothing: all may be copies of one.
    weight = {shingle: math.log((1 + len(texts)) / count) for shingle, count in known.items()}
    totals = [math.fsum(weight[shingle] for shingle in one) for one in shingled]
    for second, of_second in enumerate(shingled):
        for first, of_first in enumerate(shingled[:second]):
            smaller, larger = sorted((totals[first], totals[second]))
            if not larger or smaller < at_least * larger:
                continue
            shared = math.fsum(weight[shingle] for shingle in of_first & of_second)
            alike = shared / (smaller + larger - shared)
            if alike >= at_least:
                yield first, second, alike


def shingles(text: str) -> frozenset[str]:
    """Sequences of `WORDS` words, in lower case and without comments; of a shorter text all of it."""
    words = _WORD.findall(_COMMENT.sub("", text).lower())
    ends = range(min(WORDS, len(words)), len(words) + 1)
    return frozenset(" ".join(words[max(0, end - WORDS) : end]) for end in ends if end)
