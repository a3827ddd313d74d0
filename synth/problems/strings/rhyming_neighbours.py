"""A poem ends its lines with the words of the list `words`, in order: small letters, no word empty,
at least one word. The rhyme of two different words is the longest text with which both end; for two
equal words it is empty, since repeating a word is no rhyme. Each word of the poem is compared with
the next word, if there is one. A word that has more letters than the next word is also compared with
the word after the next, if there is one. Each comparison whose rhyme has at least `least` letters,
which is 1 or more, earns the poet as many coins as the rhyme has letters; the others earn nothing.
How many coins does the poet earn?"""

from random import Random
from typing import Any


def rhyme_length(one: str, other: str) -> int:
    """Letters with which both of two different words end."""
    if one == other:
        return 0
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return length


def solve(words: list[str], least: int) -> int:
    """Coins for all rhymes that are long enough."""
    coins = 0
    for line in range(len(words) - 1):
        word, following = words[line], words[line + 1]
        length = rhyme_length(word, following)
        if length >= least:
            coins += length
        if len(word) > len(following) and line + 2 < len(words):
            length = rhyme_length(word, words[line + 2])
            if length >= least:
                coins += length
    return coins


def solve_by_endings(words: list[str], least: int) -> int:
    """Compare the sets of all endings."""
    endings = [{word[start:] for start in range(len(word))} for word in words]
    pairs = [(line, line + 1) for line in range(len(words) - 1)]
    pairs += [
        (line, line + 2)
        for line in range(len(words) - 2)
        if len(words[line + 1]) < len(words[line])
    ]
    coins = 0
    for one, other in pairs:
        length = len(endings[one] & endings[other])
        if words[one] != words[other] and length >= least:
            coins += length
    return coins


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Words from three endings, related or not; some words are repeated."""
    endings = rng.sample(["ound", "bound", "and", "sand", "ing", "ring", "ight", "right"], 3)
    words: list[str] = []
    for _ in range(rng.randint(5, 8) + 4 * level):
        if words and rng.random() < 0.1:
            words.append(words[-1])
            continue
        words.append(rng.choice(["", "f", "st", "gr", "be", "over"]) + rng.choice(endings))
    return {"words": words, "least": rng.randint(1, 4)}


TESTS = [
    ({"words": ["sound", "ground", "round"], "least": 2}, 9),
    ({"words": ["night"], "least": 1}, 0),
    ({"words": ["ring", "ring"], "least": 1}, 0),
    ({"words": ["sand", "bird", "land"], "least": 2}, 0),
    ({"words": ["string", "sea", "ring"], "least": 3}, 4),
    ({"words": ["to", "so", "go"], "least": 1}, 2),
]
