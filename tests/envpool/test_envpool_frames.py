"""Frames and the session loop on plain sockets, without processes."""

import socket

import pytest
from hostile_envs import pool
from hypothesis import given
from hypothesis import strategies as st

from envpool import frames
from envpool.env import call_text
from envpool.frames import (
    Failed,
    FrameError,
    Outcome,
    Ready,
    Splitter,
    Start,
    Step,
    Stepped,
    decode_reply,
    decode_request,
    pack,
    read_frames,
)
from envpool.worker import Session, serve


@given(st.lists(st.text(max_size=50)), st.integers(1, 7))
def test_stream_cut_anywhere_gives_the_frames_sent(actions: list[str], size: int) -> None:
    stream = b"".join(pack(Step(id=i, action=action)) for i, action in enumerate(actions))
    splitter = Splitter()
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    bodies = [body for piece in pieces for body in splitter.feed(piece)]
    assert [decode_request(body) for body in bodies] == [
        Step(id=i, action=action) for i, action in enumerate(actions)
    ]


def test_frame_that_is_too_long_is_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pack(Step(id=1, action="x" * 200))
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameError, match=r"Step frame of \d+ bytes: at most 100"):
        pack(Step(id=1, action="x" * 200))
    with pytest.raises(FrameError, match=r"frame of \d+ bytes: at most 100"):
        list(Splitter().feed(frame))


def test_repeated_request_gets_the_recorded_reply_and_acts_once() -> None:
    session = Session(pool)
    session.answer(Start(id=0, env="hostile", config={}, seed=1))
    step = Step(id=1, action=call_text("count", {}))
    first = session.answer(step)
    assert session.answer(step) == first
    later = decode_reply(session.answer(Step(id=2, action=step.action))[frames.HEADER_BYTES :])
    assert isinstance(later, Stepped)
    assert later.observation == "2"


def test_loop_survives_faults_and_ends_with_its_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for request in (
            Step(id=9, action="{}"),
            Start(id=0, env="hostile", config={}, seed=-1),
            Start(id=1, env="hostile", config={}, seed=1),
            Step(id=2, action=call_text("fail", {})),
            Step(id=3, action=call_text("count", {})),
        ):
            ours.sendall(pack(request))
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, pool)
        theirs.shutdown(socket.SHUT_WR)
        replies = [decode_reply(body) for body in read_frames(ours)]
    early, negative, ready, failed, stepped = replies
    assert isinstance(early, Failed) and "before the start" in early.error
    assert isinstance(negative, Failed) and negative.outcome is Outcome.ENV_ERROR
    assert isinstance(ready, Ready) and ready.prompt == "Answer 1."
    assert isinstance(failed, Failed) and "broken environment" in failed.error
    assert isinstance(stepped, Stepped) and stepped.observation == "1"
