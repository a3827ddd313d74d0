"""Add up what the items of a hidden order cost, from their prices and quantities."""

from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from envpool.env import Oracle, ToolEnv, at, tool

MAX_PRICE = 20
MAX_QUANTITY = 5


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the order; `price` is for one piece."""

    price: Annotated[int, Meta(ge=0)]
    quantity: Annotated[int, Meta(ge=0)]


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hidden order."""

    items: Annotated[list[Item], Meta(min_length=1)]


class PriceTotal(ToolEnv):
    """Answer: the total of price times quantity."""

    Config = Order

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        length = rng.randint(2, 3) if level == 0 else 3 + level
        items = [
            {"price": rng.randint(1, MAX_PRICE), "quantity": rng.randint(1, MAX_QUANTITY)}
            for _ in range(length)
        ]
        return {"items": items}

    def setup(self, config: Order) -> None:
        self._items = config.items

    def statement(self) -> str:
        return "Find the total price."

    def reference(self) -> int:
        return sum(item.price * item.quantity for item in self._items)

    @tool
    def length(self) -> int:
        """How many items there are."""
        return len(self._items)

    @tool
    def price(self, index: int) -> int:
        """Price of one piece of an item.

        Args:
            index: Position of the item, from 0.
        """
        return at(self._items, index).price

    @tool
    def quantity(self, index: int) -> int:
        """How many pieces of an item there are.

        Args:
            index: Position of the item, from 0.
        """
        return at(self._items, index).quantity

    def oracle(self) -> Oracle:
        total = 0
        for index in range(int((yield "length", {}))):
            price = int((yield "price", {"index": index}))
            total += price * int((yield "quantity", {"index": index}))
        yield "done", {"answer": total}
