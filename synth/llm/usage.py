"""What asking has taken so far, and whether there is more to spend."""

import msgspec

from configs.synth import LlmRecipe
from synth.llm.replies import Reply

_MILLION = 1_000_000


class Usage(msgspec.Struct, kw_only=True):
    """Counts of one synthesizer, for its report.

    Tokens and cost are those of every reply that the run is made of, also where it was in the cache or a
    batch file: so a run that is resumed has the same bounds as one that was not.
    """

    prompts: int = 0
    """Questions, wherever their reply came from."""
    replies: int = 0
    """Replies, of the endpoint, the cache or a batch."""
    cache_hits: int = 0
    """Replies that were there already."""
    retries: int = 0
    """Further tries of requests that the endpoint failed."""
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0
    """In the currency of the recipe's prices."""
    failures: dict[str, int] = {}
    """How many replies or questions came to nothing, by reason."""
    is_budget_spent: bool = False
    """Whether questions were left out because of `max_cost` or `max_total_tokens`."""

    def add(self, reply: Reply, recipe: LlmRecipe, *, is_cached: bool) -> None:
        self.replies += 1
        self.cache_hits += is_cached
        self.prompt_tokens += reply.prompt_tokens
        self.reply_tokens += reply.reply_tokens
        self.cost += reply.prompt_tokens * recipe.price_in / _MILLION
        self.cost += reply.reply_tokens * recipe.price_out / _MILLION

    def fail(self, reason: str) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + 1

    def is_over(self, recipe: LlmRecipe) -> bool:
        """Whether a bound of the recipe is reached."""
        total = self.prompt_tokens + self.reply_tokens
        has_spent_tokens = 0 < recipe.max_total_tokens <= total
        return has_spent_tokens or 0 < recipe.max_cost <= self.cost

    def __str__(self) -> str:
        failed = ", ".join(f"{count} {reason}" for reason, count in sorted(self.failures.items()))
        parts = [
            f"{self.replies} replies to {self.prompts} prompts ({self.cache_hits} from the cache, "
            f"{self.retries} retries)",
            f"{self.prompt_tokens} + {self.reply_tokens} tokens, cost {self.cost:.4g}",
            f"failures: {failed or 'none'}",
        ]
        if self.is_budget_spent:
            parts.append("budget spent: raise llm.max_cost or llm.max_total_tokens and go on")
        return "; ".join(parts)
