"""The endpoint that writes environments: questions as the cache keys them, and when it counts as down.

One question that fails is a refusal. An endpoint that fails several in a row, or that was never one, ends
everything with an EndpointError: no further question would fare better.
"""

import msgspec

from synth.chat import Chat, Completion, QuestionError, TriesFailed
from synth.llm.cache import Request
from synth.llm.replies import RefusedReply, Reply

# Questions in a row that came to nothing after all retries, whereupon the endpoint counts as down.
MAX_FAILED_IN_ROW = 3

# Letters of a token, where the endpoint does not say how many tokens there were.
_LETTERS = 4


def reply_of(completion: Completion) -> Reply:
    """A chat completion as it is kept."""
    said, tokens = completion.said, completion.tokens
    return Reply(
        text=said.content or "",
        refusal=said.refusal or "",
        finish=completion.choices[0].finish_reason or "stop",
        prompt_tokens=tokens.prompt_tokens,
        reply_tokens=tokens.completion_tokens,
    )


class Endpoint:
    """Asks a `Chat`, which it closes."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._failed_in_row = 0
        self._has_answered = False

    @property
    def retries(self) -> int:
        return self._chat.num_retries

    async def close(self) -> None:
        await self._chat.close()

    async def ask(self, request: Request) -> Reply:
        """The reply. Raises RefusedReply where only this question failed, else EndpointError."""
        try:
            reply = reply_of(await self._chat.ask(request.body))
        except QuestionError as error:
            raise RefusedReply("endpoint", f"the endpoint refused this question: {error}") from None
        except TriesFailed as error:
            self._failed_in_row += 1
            is_none = not error.has_endpoint and not self._has_answered
            if not is_none and self._failed_in_row < MAX_FAILED_IN_ROW:
                raise RefusedReply("endpoint", str(error)) from None
            cure = "go on when it is well again"
            if not error.has_endpoint:
                cure = "correct SECTION.base_url, which most often ends in /v1, and see that the server runs"
            raise self._chat.give_up(f"gives nothing: {error}", cure) from None
        self._failed_in_row = 0
        self._has_answered = True
        if reply.prompt_tokens or reply.reply_tokens:
            return reply
        # Where it does not count tokens, a budget needs a guess.
        return msgspec.structs.replace(
            reply,
            prompt_tokens=sum(len(one.content) for one in request.messages) // _LETTERS,
            reply_tokens=len(reply.text) // _LETTERS,
        )
