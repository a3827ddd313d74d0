"""Looks at one task of an environment for everything that an auditor asks, in the environment's own process.

What is found is `[check, detail]` (the checks of `synth/audit_report.py`). A fault of the environment's code
ends one check, not the others.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

import msgspec

from envpool.blame import in_words

from .agents import MAX_SEEN, _values
from .revealed import answer_is_told, is_shown, whole_input
from .solving import plain
from .subject import Native, Subject, Upstream, subject_of

# Answers that any text about a verdict has in it.
COMMON = frozenset({"0", "1", "true", "false"})
# Characters of an observation that a finding quotes.
MAX_QUOTED = 160

_Where = Mapping[str, str]
# A tool, and which of the values that its reply holds.
_Place = tuple[str, int]
_Found = Iterator[tuple[str, str]]


def references(where: _Where, configs: list[Any]) -> list[dict[str, Any]]:
    """For each configuration `{"reference", "statement", "hidden"}`, or `{"fault"}`."""
    found: list[dict[str, Any]] = []
    for config in configs:
        try:
            subject = subject_of(where)
            statement = subject.begin(config)
            told = {"reference": subject.reference(), "statement": statement}
            found.append({**told, "hidden": _json(subject.hidden)})
        # The fault boundary of the environment's code.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            found.append({"fault": in_words(error)})
    return found


def judged(where: _Where, config: Any, answers: list[Any]) -> dict[str, Any]:
    """Answers in the form in which they are compared, whether each wins, and whether one alone is right."""
    subject = subject_of(where)
    values, wins = [], []
    for answer in answers:
        subject.begin(config)
        subject.call(subject.done, {"answer": answer})
        values.append(subject.read(answer))
        wins.append(subject.is_won())
    return {"values": values, "wins": wins, "is_strict": subject.is_strict}


def draw(where: _Where, count: int, level: int, seed: int) -> list[dict[str, Any]]:
    """What `sample` gives; nothing if there is none."""
    subject = subject_of(where)
    assert isinstance(subject, Native), "others have no sample"
    try:
        sample = subject._class.sample
        return [plain(sample(Random(f"{seed}/{level}/{i}"), level)) for i in range(count)]
    except NotImplementedError:
        return []


def defaults(where: _Where) -> dict[str, Any]:
    """The options that a class starts with, as far as they are JSON."""
    subject = subject_of(where)
    assert isinstance(subject, Upstream), "others have no defaults"
    return {"literal": repr(found) if (found := subject.defaults()) else "", "json": _json(found)}


def examine(
    where: _Where,
    config: Any,
    *,
    prompt: str,
    right: Any,
    wrong: list[Any],
    others: list[Any],
    trace: list[list[Any]],
) -> dict[str, Any]:
    """`{"findings", "is_changing", "has_oracle", "is_enough"}` of one task; the last: the answer alone wins.

    Args:
        where: Which environment.
        config: As `begin` takes it.
        prompt: What an agent is told.
        right: The reference.
        wrong: Answers that may be wrong.
        others: Configurations with other answers; may be none.
        trace: Calls that won, with their observations; may be empty.
    """
    subject = subject_of(where)
    seen: dict[str, Any] = {"is_changing": False, "has_oracle": False, "is_enough": False}
    checks: list[tuple[str, Callable[[], _Found]]] = [
        ("not_deterministic", lambda: _steady(where, config, right)),
        ("answer_leaks", lambda: _told(subject, config, prompt, right)),
        ("answer_leaks", lambda: _done_leaks(subject, config, right, wrong, others)),
        ("observe_only_wins", lambda: _observed(subject, config, others)),
        ("type_brittle", lambda: _brittle(subject, config, right, trace, seen)),
        ("oracle_fails", lambda: _played(where, config, trace, seen)),
    ]
    findings: list[tuple[str, str]] = []
    for name, check in checks:
        try:
            findings += check()
        except MemoryError:
            raise
        # The fault boundary of the environment's code.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            findings.append(("faults", f"while looking for {name}: {in_words(error)}"))
    return {"findings": findings, **seen}


def _steady(where: _Where, config: Any, right: Any) -> _Found:
    subject, again = subject_of(where), subject_of(where)
    first, second = subject.begin(config), again.begin(config)
    if first != second:
        yield "not_deterministic", f"two beginnings say {_quoted(first)} and {_quoted(second)}"
    for name, needs_more in subject.tools().items():
        if not needs_more:
            subject.call(name, {})
    for one in (subject, again):
        if (reference := one.reference()) != right:
            told = f"{_quoted(json.dumps(right))} and {_quoted(json.dumps(reference))}"
            yield "not_deterministic", f"the reference was {told}"
            return


def _told(subject: Subject, config: Any, prompt: str, right: Any) -> _Found:
    prompt = f"{prompt}\n{subject.begin(config)}"
    if whole_input(subject.hidden, prompt):
        yield "answer_leaks", "the prompt prints the whole hidden input"
    elif answer_is_told(right, prompt):
        yield "answer_leaks", f"the prompt prints the answer {_quoted(json.dumps(right))}"


def _done_leaks(
    subject: Subject, config: Any, right: Any, wrong: list[Any], others: list[Any]
) -> _Found:
    losing: list[tuple[Any, str]] = []
    for answer in wrong:
        subject.begin(config)
        reply = subject.call(subject.done, {"answer": answer})
        if not subject.is_won():  # else several are right
            losing.append((answer, reply))
    if not losing:
        if wrong and subject.is_strict:
            yield "references_wrong", f"any answer wins: {_quoted(json.dumps(wrong))} do"
        return
    subject.begin(config)
    for answer in (losing[0][0], right):
        subject.call(subject.done, {"answer": answer})
    if subject.is_won():
        yield "answer_leaks", "a second answer counts after a wrong one"
    for answer, reply in losing:
        if is_shown(right, str(answer)) or not _has_reference(reply, right):
            continue
        if others:
            subject.begin(others[0])
            if subject.call(subject.done, {"answer": answer}) == reply:
                continue
        elif json.dumps(right) in COMMON:
            continue
        yield "answer_leaks", f"a wrong answer is replied to by {_quoted(reply)}"
        return


def _has_reference(reply: str, right: Any) -> bool:
    return right not in ("", [], {}) and is_shown(right, reply)


def _observed(subject: Subject, config: Any, others: list[Any]) -> _Found:
    """An agent that calls each tool without parameters once, and answers what stands at one place of a reply.

    Where other configurations are known, the same place has to win those: any number is right by chance once.
    """
    replies = _looked(subject, config)
    for name, text in replies.items():
        if whole_input(subject.hidden, text):
            yield "observe_only_wins", f"{name} prints the whole hidden input: {_quoted(text)}"
            return
    seen = [_places(replies), *(_places(_looked(subject, other)) for other in others)]
    known: list[dict[str, bool]] = [{} for _ in seen]

    def wins(number: int, place: _Place) -> bool:
        if place not in seen[number]:
            return False
        answer = seen[number][place]
        key = repr(answer)
        if key not in known[number]:
            known[number][key] = len(known[number]) < MAX_SEEN and _wins_seen(
                subject, [config, *others][number], answer
            )
        return known[number][key]

    for place, answer in seen[0].items():
        if all(wins(number, place) for number in range(len(seen))):
            yield "observe_only_wins", f"{place[0]} shows the answer {_quoted(repr(answer))}"
            return


def _looked(subject: Subject, config: Any) -> dict[str, str]:
    """What each tool without parameters replies, called one after the other."""
    subject.begin(config)
    names = [name for name, needs_more in subject.tools().items() if not needs_more]
    return {name: subject.call(name, {}) for name in names}


def _places(replies: dict[str, str]) -> dict[_Place, Any]:
    """What an agent may take for a value, by tool and number."""
    return {
        (name, number): value
        for name, text in replies.items()
        for number, value in enumerate(_values(text))
    }


def _wins_seen(subject: Subject, config: Any, answer: Any) -> bool:
    _looked(subject, config)
    subject.call(subject.done, {"answer": answer})
    return subject.is_won()


def _brittle(
    subject: Subject, config: Any, right: Any, trace: list[list[Any]], seen: dict[str, Any]
) -> _Found:
    """The right answer wins, as it is and as text; where calls have to be made before it, after them."""
    seen["is_enough"] = _wins_after(subject, config, [], right)
    calls: list[list[Any]] = []
    if not seen["is_enough"]:
        won = trace or _oracle_calls(subject, config)
        calls = [call for call in won if call[0] != subject.done]
        if won and not subject.is_strict:  # what is right may depend on what was done
            right = won[-1][1].get("answer", right)
        if not calls or not _wins_after(subject, config, calls, right):
            yield "type_brittle", f"the reference itself loses: {_quoted(json.dumps(right))}"
            return
    if not isinstance(right, str) and not _wins_after(subject, config, calls, json.dumps(right)):
        yield "type_brittle", f"the right answer as text loses: {_quoted(repr(json.dumps(right)))}"


def _oracle_calls(subject: Subject, config: Any) -> list[list[Any]]:
    subject.begin(config)
    return [list(call) for call in subject.oracle() or ()]


def _wins_after(subject: Subject, config: Any, calls: list[list[Any]], answer: Any) -> bool:
    subject.begin(config)
    for name, arguments, _ in calls:
        subject.call(name, arguments)
    subject.call(subject.done, {"answer": answer})
    return subject.is_won()


def _played(where: _Where, config: Any, trace: list[list[Any]], seen: dict[str, Any]) -> _Found:
    """The trace and the oracle win, and are answered alike whenever they are played."""
    if trace:
        seen["has_oracle"] = True
        answered, is_won, seen["is_changing"] = _replayed(where, config, trace)
        if (at := _first_difference(answered, [call[2] for call in trace])) is not None:
            yield "oracle_fails", f"the trace is answered otherwise in call {at + 1}"
        elif not is_won:
            yield "oracle_fails", "the trace does not win"
    subject = subject_of(where)
    subject.begin(config)
    played = subject.oracle()
    if played is None:
        return
    seen["has_oracle"] = True
    if not subject.is_won():
        last = _quoted(played[-1][2]) if played else "no call"
        yield "oracle_fails", f"the oracle loses after {len(played)} calls: {last}"
    calls = [list(call) for call in played]
    answered, _, is_changing = _replayed(where, config, calls)
    seen["is_changing"] = seen["is_changing"] or is_changing
    if (at := _first_difference(answered, [call[2] for call in played])) is not None:
        yield "not_deterministic", f"the same calls are answered otherwise in call {at + 1}"


def _replayed(where: _Where, config: Any, calls: list[list[Any]]) -> tuple[list[str], bool, bool]:
    """Observations, whether it won, and whether a call but the answer changed hidden state."""
    subject = subject_of(where)
    subject.begin(config)
    before = subject.state()
    answered, is_changing = [], False
    for name, arguments, _ in calls:
        answered.append(subject.call(name, arguments))
        if not is_changing and name != subject.done:
            is_changing = subject.state() != before
    return answered, subject.is_won(), is_changing


def _first_difference(texts: list[str], others: list[str]) -> int | None:
    pairs = itertools.zip_longest(texts, others)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), None)


def _json(value: Any) -> Any:
    """In the order of its author, unlike `plain`; None for what is no JSON."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return None


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."
