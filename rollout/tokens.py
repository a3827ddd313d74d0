"""Text to tokens and back: prompts, replies, observations, and what of them is trained.

Sampled ids are kept as sampled and never encoded again; the mask covers exactly them. An observation
is appended as the model's own chat template would show it (`Drift` says how that went). Words of an
environment are untrusted: control strings in them stay text.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rollout.template import ChatTemplate, Exchange, Piece, Tool
from rollout.types import Row, Span

# Prompts and short observations repeat: a group shares its prompt, and numbers are few.
_CACHED = 4096
_CACHED_CHARS = 256


class Drift(StrEnum):
    """How the template shows a turn, once the next one is asked for."""

    CLEAN = "clean"
    """As it was: the observation is appended."""
    REALIGN = "realign"
    """The reply's white space differs: it becomes context as shown, and is not trained."""
    FORK = "fork"
    """More differs (thinking stripped): the row is closed, and a new one begins with all of it."""


class Growth(NamedTuple):
    """What an observation does to a conversation's ids: keep `keep` of them, append `ids`."""

    drift: Drift
    keep: int
    ids: Sequence[int]
    text: str
    """The conversation as rendered, for templates that rewrite it."""


class ChatTokens:
    """A model's tokenizer and chat template, as an actor and a warm start use them."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, stop_token_ids: Sequence[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        added = self._backend.get_added_tokens_decoder()
        self._control_ids = frozenset(i for i, token in added.items() if token.special)
        # A look-ahead finds every place where one of them begins, also inside another.
        controls = sorted({token.content for token in added.values()}, key=len, reverse=True)
        self._control = re.compile(
            f"(?={'|'.join(map(re.escape, controls))})" if controls else "$^"
        )

        stops = set(stop_token_ids)
        if isinstance(tokenizer.eos_token_id, int):
            stops.add(tokenizer.eos_token_id)
        self.end_id = self._find_end(stops, added)
        self.stop_token_ids: tuple[int, ...] = tuple(sorted({*stops, self.end_id}))
        """Generation ends with one of these: the template's end of a reply, and the model's own."""
        self.end_text = added[self.end_id].content
        self._prompt = lru_cache(_CACHED)(self._encode_prompt)
        self._short_delta = lru_cache(_CACHED)(self._encode_delta)

    @classmethod
    def load(cls, path: str | Path) -> "ChatTokens":
        """Load from a directory in Hugging Face format; raises ValueError when it cannot chat."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"model {path}: its tokenizer does not load: {error}") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError(f"model {path}: needs a tokenizer.json, has only a slow tokenizer")
        return cls(tokenizer, _generation_stops(Path(path)))

    def prompt_ids(self, text: str, tools: Sequence[Tool]) -> list[int]:
        """The task `text` with its `tools`, up to where the first reply begins."""
        return list(self._prompt(text, msgspec.json.encode(tools)))

    def conversation(self, text: str, tools: Sequence[Tool]) -> "Conversation":
        return Conversation(tokens=self, text=text, tools=tools)

    def reply_ids(self, reply: str) -> list[int]:
        """A demonstrated reply, with its end token."""
        return [*self._encode(reply), self.end_id]

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._backend.decode(list(token_ids), skip_special_tokens=False)

    def delta_ids(self, observation: str, *, has_end: bool) -> Sequence[int]:
        """From the end of a reply to the next, under an append-only template.

        `has_end`: the reply ended with `end_id`, which is then not repeated.
        """
        if len(observation) <= _CACHED_CHARS:
            return self._short_delta(observation, has_end)
        return self._encode_delta(observation, has_end)

    def rendered(
        self, text: str, exchanges: Sequence[Exchange], tools: Sequence[Tool]
    ) -> list[Piece]:
        """The conversation as the template shows it, in pieces where there are hostile words."""
        words = [text, *(exchange.observation for exchange in exchanges)]
        if any(map(self._control.search, words)):
            return self.template.pieces(text, exchanges, tools)
        return [Piece(self.template.render(text, exchanges, tools), False)]

    def pieces_ids(self, pieces: Sequence[Piece], *, skip: int = 0) -> list[int]:
        """Encode pieces from character `skip` of their text on.

        Without control strings in untrusted ones, they are encoded as one text, as the model's own
        tools would do it: tokens may then cross the borders of the pieces.
        """
        if not any(piece.is_untrusted and self._control.search(piece.text) for piece in pieces):
            pieces = [Piece(_joined(pieces), False)]
        ids: list[int] = []
        for text, is_untrusted in pieces:
            rest, skip = text[skip:], max(0, skip - len(text))
            ids += self._encode_as_text(rest) if is_untrusted else self._encode(rest)
        return ids

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _encode_as_text(self, text: str) -> list[int]:
        """Encode so that no added token is recognised: cut after the first letter of each."""
        cuts = [match.start() + 1 for match in self._control.finditer(text)]
        ids: list[int] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            ids += self._encode(text[start:end])
        # Normalisers can still make one out of look-alike letters.
        return [token_id for token_id in ids if token_id not in self._control_ids]

    def _encode_prompt(self, text: str, tools_json: bytes) -> tuple[int, ...]:
        return tuple(self.pieces_ids(self.rendered(text, [], msgspec.json.decode(tools_json))))

    def _encode_delta(self, observation: str, has_end: bool) -> tuple[int, ...]:
        before, after = self.template.frame
        if has_end:
            before = before.removeprefix(self.end_text)
        pieces = [Piece(before, False), Piece(observation, True), Piece(after, False)]
        return tuple(self.pieces_ids(pieces))

    def _find_end(self, stops: set[int], added: dict[int, Any]) -> int:
        """The token with which the template ends a reply; raises ValueError when it has none."""
        before = self.template.frame.before
        for candidates in (stops, self._control_ids):
            for token_id in candidates:
                if token_id in added and before.startswith(added[token_id].content):
                    return token_id
        raise ValueError(
            f"the chat template of {self.tokenizer.name_or_path!r} ends a reply with {before!r}, "
            "which begins with no special token: a reply could not end"
        )


@dataclass(slots=True, kw_only=True)
class _OpenRow:
    """A row under construction: T ids, log-probs and mask bits, and the spans of the sampled."""

    ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def append(self, ids: Sequence[int]) -> None:
        self.ids += ids
        self._pad()

    def sample(
        self, ids: list[int], logprobs: npt.NDArray[np.float32], spans: Sequence[Span]
    ) -> None:
        self._pad()
        start = len(self.ids)
        self.ids += ids
        self.logprobs += logprobs.tolist()
        self.mask += [1] * len(ids)
        self.spans += [
            msgspec.structs.replace(span, start=start + span.start, end=start + span.end)
            for span in spans
        ]

    def cut(self, length: int) -> None:
        """Forget what follows position `length`, which is where a reply began."""
        del self.ids[length:], self.logprobs[length:], self.mask[length:]
        self.spans = [span for span in self.spans if span.end <= length]

    def pack(self) -> Row | None:
        """Up to the last sampled token: what follows it trains nothing. None without any."""
        length = self.spans[-1].end if self.spans else 0
        if not length:
            return None
        return Row.pack(self.ids[:length], self.logprobs[:length], self.mask[:length], self.spans)

    def _pad(self) -> None:
        missing = len(self.ids) - len(self.mask)
        self.logprobs += [0.0] * missing
        self.mask += [0] * missing


class Conversation:
    """One rollout's tokens: prompt, then `reply` and `observe` in turn."""

    def __init__(self, *, tokens: ChatTokens, text: str, tools: Sequence[Tool]) -> None:
        self._tokens = tokens
        self._text = text
        self._tools = tools
        self._row = _OpenRow(ids=tokens.prompt_ids(text, tools))
        self._closed: list[Row] = []
        self._reply: str | None = None
        self._reply_start = 0
        self._has_end = False
        self._exchanges: list[Exchange] = []
        is_append_only = tokens.template.is_append_only
        self._rendered = "" if is_append_only else _joined(tokens.rendered(text, [], tools))
        self.drifts: list[Drift] = []
        """How each observed turn went."""

    @property
    def ids(self) -> list[int]:
        """What the engine is to continue, or has just continued. Not to be changed."""
        return self._row.ids

    def reply(
        self, token_ids: npt.ArrayLike, logprobs: npt.ArrayLike, spans: Sequence[Span]
    ) -> str:
        """Record N sampled tokens; returns their text without the stop token.

        Args:
            token_ids: [N] as sampled, with the stop token where one was.
            logprobs: [N] of the distribution they were sampled from.
            spans: cover 0..N, relative to the reply.

        Raises:
            ValueError: lengths disagree. RuntimeError: the last reply was not observed yet.
        """
        if self._reply is not None:
            raise RuntimeError("a reply is waiting for its observation: call observe first")
        ids: list[int] = np.asarray(token_ids, dtype=np.int32).tolist()
        sampled = np.asarray(logprobs, dtype=np.float32)
        if len(ids) != len(sampled) or sum(span.end - span.start for span in spans) != len(ids):
            raise ValueError(
                f"a reply of {len(ids)} tokens has {len(sampled)} log-probs and spans {spans}"
            )
        self._reply_start = len(self._row.ids)
        self._row.sample(ids, sampled, spans)
        self._has_end = bool(ids) and ids[-1] == self._tokens.end_id
        has_stop = bool(ids) and ids[-1] in self._tokens.stop_token_ids
        self._reply = self._tokens.decode(ids[:-1] if has_stop else ids)
        return self._reply

    def num_delta_tokens(self, observation: str) -> int:
        """By how much `observe` would lengthen `ids` (a rewritten history can shorten it)."""
        growth = self._growth(observation)
        return growth.keep + len(growth.ids) - len(self._row.ids)

    def observe(self, observation: str) -> None:
        """Append what the template shows of `observation`, up to where the next reply begins."""
        growth = self._growth(observation)
        if growth.drift is Drift.REALIGN:
            self._row.cut(growth.keep)
        elif growth.drift is Drift.FORK:
            self._close_row()
            self._row = _OpenRow(ids=[])
        self._row.append(growth.ids)
        self._exchanges.append(Exchange(self._reply or "", observation))
        self._rendered = growth.text
        self._reply = None
        self.drifts.append(growth.drift)

    def rows(self) -> list[Row]:
        """What there is to train on, oldest first; a row without sampled tokens is left out."""
        last = self._row.pack()
        return [*self._closed, *([last] if last else [])]

    def _close_row(self) -> None:
        row = self._row.pack()
        if row:
            self._closed.append(row)

    def _growth(self, observation: str) -> Growth:
        if self._reply is None:
            raise RuntimeError("nothing to observe: call reply first")
        if not self._tokens.template.is_append_only:
            return self._rerender(self._reply, observation)
        delta = self._tokens.delta_ids(observation, has_end=self._has_end)
        return Growth(Drift.CLEAN, len(self._row.ids), delta, "")

    def _rerender(self, reply: str, observation: str) -> Growth:
        """Render all of it again, and keep the ids of as much as still stands."""
        exchanges = [*self._exchanges, Exchange(reply, observation)]
        pieces = self._tokens.rendered(self._text, exchanges, self._tools)
        text = _joined(pieces)
        shown = len(self._rendered)
        if text.startswith(self._rendered + reply):
            shown += len(reply)
            if self._has_end and text.startswith(self._tokens.end_text, shown):
                shown += len(self._tokens.end_text)
            drift, keep = Drift.CLEAN, len(self._row.ids)
        elif text.startswith(self._rendered) and self._differs_in_space(text[shown:], reply):
            drift, keep = Drift.REALIGN, self._reply_start
        else:
            drift, keep, shown = Drift.FORK, 0, 0
        return Growth(drift, keep, self._tokens.pieces_ids(pieces, skip=shown), text)

    def _differs_in_space(self, rest: str, reply: str) -> bool:
        shown, found, _ = rest.partition(self._tokens.template.frame.before)
        return bool(found) and shown.split() == reply.split()


def _joined(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _generation_stops(path: Path) -> list[int]:
    """End tokens that the model's generation_config.json names, if it has one."""
    file = path / "generation_config.json"
    if not file.exists():
        return []
    stops = json.loads(file.read_bytes()).get("eos_token_id")
    return [stops] if isinstance(stops, int) else stops or []
