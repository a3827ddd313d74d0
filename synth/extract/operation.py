"""What a solution is compiled to: tools, and programs that call them."""

import ast
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Operation:
    """One tool."""

    name: str
    doc: str
    body: list[str]
    """Lines of its body, on the state."""
    counters: dict[str, ast.Call]
    """Its parameters, which the player counts, and the ranges they go through."""
    natural: set[str]
    """Those of them that never go below 0."""
    returns: str
    """Text of the type that it returns."""
    is_change: bool
    """Whether it carries out statements of the solution."""


@dataclass(slots=True, kw_only=True)
class Compiled:
    """Tools, and programs in terms of them."""

    operations: list[Operation]
    setup: list[str]
    """Lines carried out when an episode begins."""
    oracle: list[ast.stmt]
    helpers: dict[str, list[ast.stmt]]
    """Programs of helper functions, by the function's name."""
