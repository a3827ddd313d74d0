"""What a text gives away of a hidden input or an answer, in whatever way it is written out.

Values and texts are compared as sequences of words and numbers, so that `[3, 1]`, `3 1` and `3, 1` are one.
"""

import re
from typing import Any

# A value of fewer words may stand in a text by chance.
TELLING_WORDS = 3
# So may a shorter text, such as that for "there is none".
TELLING_CHARS = 8

_WORD = re.compile(r"-?\d+(?:\.\d+)?|[^\W\d_]+")
_SAME: dict[str, str] = {"none": "null"}


def words(text: str) -> list[str]:
    """Words in lower case, and numbers, whole ones without a fraction."""
    found = (str(word).lower().removesuffix(".0") for word in _WORD.findall(text))
    return [_SAME.get(word, word) for word in found]


def words_of(value: Any) -> list[str]:
    """The same of a value, part by part, keys of dicts among them."""
    if isinstance(value, dict):
        return [word for pair in value.items() for part in pair for word in words_of(part)]
    if isinstance(value, list | tuple | set | frozenset):
        return [word for part in value for word in words_of(part)]
    return words(str(value))


def is_shown(value: Any, text: str) -> bool:
    """Whether a text has a value whole and in one piece."""
    wanted = words_of(value)
    if not wanted:
        return str(value) in text if isinstance(value, str) else not value
    found = words(text)
    size = len(wanted)
    starts = (i for i in range(len(found) - size + 1) if found[i] == wanted[0])
    if any(found[i : i + size] == wanted for i in starts):
        # Punctuation counts where a text is short of words.
        return not isinstance(value, str) or value in text
    return False


def whole_input(config: Any, text: str) -> bool:
    """Whether a text has every part of a configuration, and that is more than a number or two."""
    if not isinstance(config, dict) or not any(map(_is_telling, config.values())):
        return False
    return all(is_shown(part, text) for part in config.values())


def answer_is_told(answer: Any, text: str) -> bool:
    """Whether a text has an answer that cannot be there by chance: numbers and single words can be."""
    if isinstance(answer, str):
        is_phrase = len(answer) >= TELLING_CHARS and not answer.isalpha()
        return is_phrase and answer in text
    is_telling = isinstance(answer, list | tuple | dict) and len(words_of(answer)) >= TELLING_WORDS
    return is_telling and is_shown(answer, text)


def _is_telling(part: Any) -> bool:
    if isinstance(part, str):
        return len(part) >= TELLING_WORDS
    return isinstance(part, list | tuple | dict) and len(words_of(part)) >= TELLING_WORDS
