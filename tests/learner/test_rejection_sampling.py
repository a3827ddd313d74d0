"""Rollouts that ended well become demonstrations: which, with which tokens, and that a policy learns them."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from configs.load import ConfigError, load
from configs.sft import Message, MessagesRow, PolicyRecipe, RolloutsRecipe, SampledRow, SftRecipe
from envpool.task import Split, config_split
from learner import sft
from learner.attention import use_packing
from learner.demonstrations import as_sampled, encode, encode_all, held_out
from learner.tiny_policy import make_tokenizer
from rollout import rundir
from rollout.files import RolloutRow, RunFiles, whole_lines
from rollout.ledger import GroupState
from rollout.logged import read_all
from rollout.model import load_model
from rollout.run import check
from rollout.successes import Choice, Left, demonstration, merged, task_of
from rollout.teacher import Shown, draw, play, sample
from rollout.tokens import ChatTokens
from rollout.types import Row, Span, StopReason, Turn
from synth.demonstrations import gather
from tests.fakes import make_turn
from tests.recipes import BASICS

POLICY = "tiny_policy/policy"
TEACHER = RolloutsRecipe(
    teacher=POLICY,
    recipe=[BASICS, 'pools.basics.train=["find_max", "sum_list"]', "engine.max_running=16"],
    tasks=6,
    samples=8,
    per_task=2,
)


def turn(action: str = "{}", *, reply: str | None = None, observation: str = "1") -> Turn:
    return msgspec.structs.replace(make_turn(), action=action, reply=reply, observation=observation)


def row(
    *turns: Turn, reward: float | None = 1.0, split: Split = Split.TRAIN, **changes: Any
) -> RolloutRow:
    config = next(
        config for number in range(99) if config_split("e", config := {"n": number}) is split
    )
    made = RolloutRow(
        group_id="g000001",
        member=0,
        attempt=0,
        group_size=2,
        state=GroupState.TRAINED,
        step=1,
        lag=0,
        task_id="p/e/1",
        pool="p",
        pool_version="v",
        env="e",
        config=config,
        seed=0,
        prompt="Do it.",
        stop=StopReason.ANSWERED if reward is not None else StopReason.ENV_ERROR,
        reward=reward,
        versions=[0],
        num_tokens=4,
        num_sampled_tokens=2,
        turns=list(turns),
        actor="a",
        wall_s=0.0,
        error="",
    )
    return msgspec.structs.replace(made, **changes)


def chosen(rows: list[RolloutRow], **settings: Any) -> tuple[list[int], dict[Left, int]]:
    """Positions of those that are kept, and counts of those that are not."""
    choice = Choice(RolloutsRecipe(**settings))
    for one in rows:
        choice.offer(one, is_evaluation=one.state is None)
    kept = choice.chosen()
    return [rows.index(one) for one in kept], {key: n for key, n in choice.left.items() if n}


def test_what_is_left_out_is_counted_by_reason() -> None:
    rows = [
        row(turn("a"), reward=0.5),
        row(turn("b"), reward=None),
        row(turn("c"), split=Split.EVAL),
        row(turn("d"), state=None),
        row(reward=1.0),
        row(turn("e")),
        row(turn("e")),
        row(turn("e", observation="2")),
    ]
    kept, left = chosen(rows)
    assert kept == [5, 7]
    assert left == {Left.LOW: 1, Left.FAULT: 2, Left.EVALUATION: 2, Left.REPEATED: 1}
    kept, left = chosen(rows, evaluation=True, min_reward=0.5, per_task=0, choose="first")
    assert kept == [0, 2, 3, 5, 7]
    assert left == {Left.FAULT: 2, Left.REPEATED: 1}


def test_the_shortest_of_each_task_are_kept() -> None:
    long, short = row(turn("a"), turn("b")), row(turn("c"))
    wordy = row(msgspec.structs.replace(turn("d"), num_reply_tokens=9))
    other = row(turn("a"), turn("b"), task_id="p/e/2")
    rows = [long, wordy, short, other]
    assert chosen(rows, per_task=2) == ([2, 1, 3], {Left.MANY: 1})
    assert chosen(rows, per_task=2, choose="first") == ([0, 1, 3], {Left.MANY: 1})


def test_a_task_of_two_sources_is_chosen_from_once() -> None:
    def made(*turns: Turn, task: str) -> MessagesRow:
        return msgspec.structs.replace(demonstration(row(*turns), []), task=task)

    long, short = made(turn("a"), turn("b"), task="1"), made(turn("a"), task="1")
    other, nameless = made(turn("a"), task="2"), made(turn("a"), task="")
    rows = [long, short, short, other, nameless, nameless]
    settings = RolloutsRecipe(per_task=1)
    assert merged(rows, settings) == [nameless, nameless, short, other]
    first = msgspec.structs.replace(settings, choose="first")
    assert merged(rows, first) == [nameless, nameless, long, other]
    every = msgspec.structs.replace(settings, per_task=0)
    assert merged(rows, every) == [nameless, nameless, short, long, other]


def test_all_that_a_model_said_is_imitated() -> None:
    made = demonstration(row(turn("{}"), turn("{}", reply="Well.\n{}")), [])
    assert [(m.role, m.content) for m in made.messages] == [
        ("user", "Do it."),
        ("assistant", "<tool_call>\n{}\n</tool_call>"),
        ("tool", "1"),
        ("assistant", "Well.\n{}"),
    ]


@pytest.fixture(scope="module")
def played() -> tuple[list[RolloutRow], Shown]:
    """Rollouts of the shipped policy, played in this process."""
    return play(TEACHER, seed=0)


@pytest.fixture(scope="module")
def sampled(played: tuple[list[RolloutRow], Shown]) -> list[MessagesRow]:
    """Those that ended well, with their tokens."""
    rows, shown = played
    return [demonstration(one, shown[one.task_id][1]) for one in rows if one.reward == 1.0]


def test_a_teacher_plays_training_tasks_and_its_successes_are_kept(
    played: tuple[list[RolloutRow], Shown], sampled: list[MessagesRow]
) -> None:
    rows, _ = played
    assert len(rows) == TEACHER.tasks * TEACHER.samples == 48
    assert {one.env for one in rows} == {"find_max", "sum_list"}
    assert all(task_of(one).split is Split.TRAIN for one in rows)
    made = sample(TEACHER, seed=0)
    assert made and all(one in sampled for one in made)
    tasks = [one.task for one in made]
    assert set(tasks) == {one.task for one in sampled}
    assert max(map(tasks.count, tasks)) <= 2
    others, _ = play(msgspec.structs.replace(TEACHER, samples=1), seed=1)
    assert {one.task_id for one in others} != {one.task_id for one in rows}


def test_sampled_tokens_are_used_as_they_are_by_the_same_tokenizer(
    sampled: list[MessagesRow], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tokens = ChatTokens.load(Path("configs") / POLICY)
    one = sampled[0]
    [again] = encode(one, tokens)
    ids, mask = again.token_ids.tolist(), again.mask.tolist()
    # Other tokens of the same text: a number's digits, one by one.
    at, digits = two_tokens(ids, mask, tokens)
    other = [*ids[:at], *digits, *ids[at + 1 :]]
    odd = msgspec.structs.replace(one, sampled=[kept(other, [*mask[:at], 1, *mask[at:]])])
    [used] = as_sampled(odd, [again], tokens) or []
    assert used.token_ids.tolist() == other
    [[also]] = encode_all([odd], tokens, max_tokens=512)
    assert also.token_ids.tolist() == other
    assert "1 demonstrations are trained on as they were sampled" in caplog.text

    # Any other text, mask or number is not trusted.
    for odd_ids, odd_mask in [
        (ids[:-1], mask[:-1]),
        ([*ids[:at], ids[at] + 1, *ids[at + 1 :]], mask),
        ([*ids[:-1], 10**6], mask),
        (ids, [1, *mask[1:]]),
        (ids, [*mask[:-1], 0]),
    ]:
        wrong = msgspec.structs.replace(one, sampled=[kept(odd_ids, odd_mask)])
        assert as_sampled(wrong, [again], tokens) is None
        [[row]] = encode_all([wrong], tokens, max_tokens=512)
        assert row == again
    stranger = ChatTokens(make_tokenizer(["other words"], 512))
    assert as_sampled(one, encode(one, stranger), stranger) is None
    assert encode_all([one], tokens, max_tokens=len(ids) - 1) == [[]]


def kept(ids: list[int], mask: list[int]) -> SampledRow:
    return SampledRow(token_ids=np.array(ids, dtype=np.int32).tobytes(), mask=bytes(mask))


def two_tokens(ids: list[int], mask: list[int], tokens: ChatTokens) -> tuple[int, list[int]]:
    """Where a number of two digits was sampled, and its digits as tokens."""
    for at, bit in enumerate(mask):
        text = tokens.decode([ids[at]])
        if bit and text.isdecimal() and len(text) == 2:
            return at, [tokens.reply_ids(digit)[0] for digit in text]
    raise AssertionError("no such number")


def test_a_run_is_read_as_it_was_played(
    played: tuple[list[RolloutRow], Shown], sampled: list[MessagesRow], tmp_path: Path
) -> None:
    rows, _ = played
    run_dir = rundir.prepare(check(load([*TEACHER.recipe, f"run.dir={tmp_path / 'run'}"])).config)
    files = RunFiles(run_dir, keeps_tokens=True)
    for one in rows:
        files.rollout(msgspec.structs.replace(one, state=GroupState.TRAINED), one.rows)
    won = next(one for one in rows if one.reward == 1.0)
    trained = msgspec.structs.replace(won, state=GroupState.TRAINED)
    files.rollout(msgspec.structs.replace(trained, prompt="Do something else."))
    files.rollout(msgspec.structs.replace(trained, pool_version="another", task_id="basics/x/0"))
    files.evaluation("before", won)
    files.close()
    found = read_all(RolloutsRecipe(paths=[str(run_dir)], per_task=0))
    # A task's own are together, and the same calls were made twice now and then.
    assert all(one in sampled for one in found)
    assert {(one.task, str(one.messages)) for one in found} == {
        (one.task, str(one.messages)) for one in sampled
    }
    log = run_dir / "rollouts" / "part_0000.jsonl"
    assert read_all(RolloutsRecipe(paths=[str(log)], per_task=0)) == found
    evaluated = [str(run_dir / "rollouts" / "eval_before.jsonl")]
    with pytest.raises(ConfigError, match=r"of the evaluation side alone.*evaluation=true"):
        read_all(RolloutsRecipe(paths=evaluated))
    assert len(read_all(RolloutsRecipe(paths=evaluated, evaluation=True))) == 1
    with pytest.raises(ConfigError, match="is not the directory of a run"):
        read_all(RolloutsRecipe(paths=[str(tmp_path)]))
    # A pool for evaluation is not imitated, whatever was played of it.
    config = run_dir / "config.json"
    tree = msgspec.json.decode(config.read_bytes())
    tree["pools"]["basics"]["split"] = "eval"
    config.write_bytes(msgspec.json.encode(tree))
    with pytest.raises(ConfigError, match=r"of the evaluation side alone"):
        read_all(RolloutsRecipe(paths=[str(run_dir)]))


def test_a_teacher_does_not_play_pools_for_evaluation() -> None:
    apart = ["pools.apart.source=tests.other_pools:apart", "pools.apart.trusted=true"]
    both = draw(check(load([BASICS, *apart])), number=40, seed=0)
    assert {task.pool for task in both} == {"basics", "apart"}
    alone = draw(check(load([BASICS, *apart, "pools.apart.split=eval"])), number=40, seed=0)
    assert {task.pool for task in alone} == {"basics"}


def test_tokens_are_logged_only_where_asked(tmp_path: Path) -> None:
    tokens = [Row.pack([1, 2], [0, -1], [0, 1], [Span(0, 1, 2)])]
    for name, keeps in (("with", True), ("without", False)):
        files = RunFiles(tmp_path / name, keeps_tokens=keeps)
        files.rollout(row(turn()), tokens)
        files.close()
        [line] = whole_lines(tmp_path / name / "rollouts" / "part_0000.jsonl")
        assert msgspec.json.decode(line, type=RolloutRow).rows == (tokens if keeps else [])


def test_a_new_policy_learns_what_the_teacher_does(
    sampled: list[MessagesRow], tmp_path: Path
) -> None:
    path = tmp_path / "messages.jsonl"
    path.write_bytes(msgspec.json.Encoder().encode_lines(sampled))
    recipe = SftRecipe(
        out=str(tmp_path / "out"),
        policy=PolicyRecipe(hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, vocabulary=512),
        rollouts=RolloutsRecipe(paths=[str(path)]),
        batch_rows=4,
        epochs=50,
        warmup_steps=2,
        lr=1e-2,
    )
    rows = gather(recipe)
    assert len(rows) < len(sampled) and {one.task for one in rows} == {one.task for one in sampled}
    assert gather(recipe) == rows
    sft.train(rows, recipe)
    tokens = ChatTokens.load(recipe.out)
    model = load_model(recipe.out, "float32")
    use_packing(model)
    encoded = [one for demonstration in rows for one in encode(demonstration, tokens)]
    assert sft.mean_loss(model, encoded, recipe) < 1.5
    empty = RolloutsRecipe(paths=[str(path)], min_reward=2)
    with pytest.raises(ConfigError, match=r"lower rollouts\.min_reward=2"):
        gather(msgspec.structs.replace(recipe, rollouts=empty))


def test_tasks_are_held_out_whole() -> None:
    rows = [
        MessagesRow(
            env="e", messages=[Message(role="user", content="x")], tools=[], reward=1.0, task=task
        )
        for task in ("a", "b", "a", "c", "d", "b", "", "")
    ]
    apart = held_out(rows, SftRecipe(out="", held_out=0.5))
    assert sum(apart) >= 3
    assert apart[0] == apart[2] and apart[1] == apart[5]
    with pytest.raises(ConfigError, match=r"held_out=0.01 of 6 tasks is 0"):
        held_out(rows, SftRecipe(out="", held_out=0.01))
