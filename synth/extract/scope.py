"""What a compiler knows of the function that it is at."""

import ast
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Scope:
    """One function under compilation."""

    function: ast.FunctionDef
    counters: dict[str, ast.Call]
    """Variables that only ever count through a range, which the player can do."""
    natural: set[str]
    """Those of them that never go below 0."""
    once: set[str]
    """Whole numbers that are set once: told once, known from then on."""
    result: str = ""
    """Variable that a helper leaves its result in; empty in the entry function."""
    known: set[str] = field(default_factory=set)
    """Those of `once` that the player was told, in the program so far."""
