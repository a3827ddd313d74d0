"""The text of a small pool, for tests that write one to a directory."""

import textwrap
from pathlib import Path

_TEXT = '''
import msgspec
from envpool.env import ToolEnv, tool


class Number(msgspec.Struct):
    number: int


class OddNumber(ToolEnv):
    """How often was `look` called?"""

    Config = Number
    Answer = int

    @classmethod
    def sample(cls, rng, level):
        return {{"number": rng.randrange(10**6)}}

    def setup(self, config):
        self.config, self.looks = config, 0

    def statement(self):
        return "Answer the number."

    def reference(self):
        return self.config.number

    @tool
    def look(self) -> str:
        """Look."""
        self.looks += 1
        return f"{{self.looks}} {word}"
'''


def write_pool(folder: Path, word: str = "first", name: str = "odd_number.py") -> Path:
    """A directory with one environment, `odd_number`, whose tool `look` counts and says `word`."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(textwrap.dedent(_TEXT).format(word=word))
    return folder
