"""Finished work is found again by all that decides it, and by nothing else."""

from pathlib import Path

import msgspec
import pytest

from configs.synth import VerifyRecipe
from synth.atomic import WriteError
from synth.store import Store, code_digest


class Record(msgspec.Struct, frozen=True, kw_only=True):
    words: tuple[str, ...]


ONE = Record(words=("a", 'b "c" \n'))


def test_what_was_put_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "work")
    key = store.key("problem", VerifyRecipe(), [1, "x"])
    assert store.get("made", key, Record) is None
    store.put("made", key, ONE)
    assert Store(tmp_path / "work").get("made", key, Record) == ONE
    assert store.get("rates", key, Record) is None
    assert store.has("made") and not store.has("rates")


def test_a_key_says_all_that_decides(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path, salt="another code")
    parts = ("problem", VerifyRecipe(), [1, 2])
    keys = {
        store.key(*parts),
        other.key(*parts),
        store.key("problem", VerifyRecipe(seed=1), [1, 2]),
        store.key("problem", VerifyRecipe(), [2, 1]),
        store.key("problem", VerifyRecipe(), 1, 2),
        store.key(),
    }
    assert len(keys) == 6 and all(len(key) >= 16 for key in keys)
    assert store.key(*parts) == Store(tmp_path).key(*parts) == Store(tmp_path / "x").key(*parts)
    assert store.key({"a": 1, "b": 2}) == store.key({"b": 2, "a": 1})


@pytest.mark.parametrize("damage", [b"", b'{"words": ["a"', b'{"words": 3}', b"\xff\xfe", b"[]"])
def test_a_damaged_record_is_none_and_can_be_put_again(tmp_path: Path, damage: bytes) -> None:
    store = Store(tmp_path)
    key = store.key("it")
    store.put("made", key, ONE)
    (path,) = (tmp_path / "made").iterdir()
    path.write_bytes(damage)
    assert store.get("made", key, Record) is None
    store.put("made", key, ONE)
    assert store.get("made", key, Record) == ONE
    assert [one.name for one in (tmp_path / "made").iterdir()] == [path.name]


def test_what_cannot_be_written_is_said_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("in the way")
    with pytest.raises(WriteError, match=r"made/.*json could not be written"):
        Store(tmp_path).put("made", "key", ONE)


def test_the_code_decides_and_its_problems_do_not(tmp_path: Path) -> None:
    assert len(code_digest()) == 64 and code_digest() == code_digest()
    code = ("synth/a.py", "synth/inside/b.py", "synth/llm/prompts/c.md", "envpool/d.py")
    for name in (*code, "synth/problems/graphs/e.py", "synth/notes.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one")
    seen = [code_digest(tmp_path)]
    for name in code:
        (tmp_path / name).write_text("two")
        seen.append(code_digest(tmp_path))
        (tmp_path / name).rename((tmp_path / name).with_stem("z"))
        seen.append(code_digest(tmp_path))
    assert len(set(seen)) == 9
    (tmp_path / "synth/problems/graphs/e.py").write_text("two")
    (tmp_path / "synth/notes.md").write_text("two")
    assert code_digest(tmp_path) == seen[-1]
