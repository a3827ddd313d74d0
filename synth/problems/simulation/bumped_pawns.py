"""In a board game each of `players` players (at least 2) has one pawn. All pawns start off the board, on
square 0; the squares of the board are numbered from 1 to `goal` (at least 8). `rolls` lists what the die
shows (1 to 6), roll by roll. Player 1 rolls first, then player 2 and so on, and after the last player
it is player 1's turn again; but who rolls a six has the next roll as well. The pawn moves forward by
what was rolled; if that would lead beyond the goal, it walks to the goal and back again for the steps
that are left over. If it ends on a square where another pawn stands, that other pawn is sent to square 0.
The game ends as soon as a pawn ends its move on the goal, even if rolls are left, or after the last roll.
Return the numbers of the squares on which the pawns stand at the end, added up.
"""

from random import Random
from typing import Any


def solve(players: int, goal: int, rolls: list[int]) -> int:
    """Sum of the pawns' squares at the end."""
    squares = [0] * players
    turn = 0
    for roll in rolls:
        square = squares[turn] + roll
        if square > goal:
            square = goal - (square - goal)
        for other in range(players):
            if other != turn and squares[other] == square:
                squares[other] = 0
        squares[turn] = square
        if square == goal:
            break
        if roll != 6:
            turn = (turn + 1) % players
    return sum(squares)


def solve_by_squares(players: int, goal: int, rolls: list[int]) -> int:
    """Remember who stands on each square, and walk step by step."""
    standing: dict[int, int] = {}
    player = 1
    left = list(reversed(rolls))
    while left and goal not in standing:
        roll = left.pop()
        places = [square for square, who in standing.items() if who == player]
        square = places[0] if places else 0
        standing.pop(square, None)
        direction = 1
        for _ in range(roll):
            if square == goal:
                direction = -1
            square += direction
        standing[square] = player
        if roll < 6:
            player = player + 1 if player < players else 1
    return sum(standing)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A board short enough that pawns meet, and now and then reach the goal."""
    players = rng.randint(2, 3 + level)
    rolls = [rng.choice([1, 2, 3, 3, 4, 5, 6]) for _ in range(rng.randint(6, 9) * (level + 1))]
    return {"players": players, "goal": rng.randint(9, 14 + 4 * level), "rolls": rolls}


TESTS = [
    ({"players": 2, "goal": 10, "rolls": [3, 3]}, 3),
    ({"players": 2, "goal": 10, "rolls": [6, 4, 5]}, 10),
    ({"players": 2, "goal": 8, "rolls": [5, 2, 5, 1]}, 9),
    ({"players": 3, "goal": 12, "rolls": [2, 5, 6, 1, 3]}, 12),
    ({"players": 2, "goal": 9, "rolls": []}, 0),
]
