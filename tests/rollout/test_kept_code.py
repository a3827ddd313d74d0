"""The text of pools, kept in the run's directory."""

from pathlib import Path

import pytest

from configs.load import ConfigError
from rollout import kept_code


def test_a_directory_is_kept_as_it_was(tmp_path: Path) -> None:
    run_dir, source = tmp_path / "run", tmp_path / "odd"
    run_dir.mkdir()
    (source / "data").mkdir(parents=True)
    (source / "odd.py").write_text("one")
    (source / "data" / "words.txt").write_text("words")
    first = kept_code.keep(run_dir, "odd", str(source))
    (source / "odd.py").write_text("two")
    second = kept_code.keep(run_dir, "odd", str(source))
    assert (first, second) == ("pools/odd-1", "pools/odd-2")
    assert (run_dir / first / "odd.py").read_text() == "one"
    assert (run_dir / second / "odd.py").read_text() == "two"
    assert (run_dir / second / "data" / "words.txt").read_text() == "words"
    kept_code.drop(run_dir, second)
    assert [path.name for path in (run_dir / "pools").iterdir()] == ["odd-1"]
    # What a resumed run is served from is kept already.
    assert kept_code.keep(run_dir, "odd", str(run_dir / first)) == first


def test_a_file_is_kept_and_a_module_is_not(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("one")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    kept = kept_code.keep(run_dir, "an/odd name", str(tmp_path / "odd.py"))
    assert (run_dir / kept / "odd.py").read_text() == "one"
    assert kept_code.keep(run_dir, "basics", "envpool.envs:basics") == ""
    (run_dir / "pools" / "notes.txt").touch()
    assert kept_code.keep(run_dir, "odd", str(tmp_path / "odd.py")) == "pools/odd-2"
    for nowhere in ("~nobody-of-this-name/odd.py", "~nobody-of-this-name/odd"):
        assert not kept_code.is_kept(run_dir, nowhere)
        with pytest.raises(ConfigError, match="cannot be read"):
            kept_code.keep(run_dir, "odd", nowhere)
    with pytest.raises(ConfigError, match=r"pools\.odd\.source='\./gone' does not exist"):
        kept_code.keep(run_dir, "odd", "./gone")


def test_a_way_out_of_the_kept_text_is_no_kept_text(tmp_path: Path) -> None:
    run_dir, source = tmp_path / "run", tmp_path / "odd"
    source.mkdir()
    (source / "odd.py").write_text("one")
    (run_dir / "pools").mkdir(parents=True)
    around = str(run_dir / "pools" / ".." / ".." / "odd")
    assert not kept_code.is_kept(run_dir, around)
    assert kept_code.keep(run_dir, "odd", around) == "pools/odd-1"
    assert kept_code.is_kept(run_dir, str(run_dir / "pools" / "odd-1"))


@pytest.mark.parametrize(
    ("source", "place"),
    [("/home/me/odd.py", "/home/me/odd.py:3"), ("/home/me/odd", "/home/me/odd/odd.py:3")],
)
def test_a_place_in_a_copy_is_one_in_the_source(source: str, place: str) -> None:
    told = kept_code.in_their_words(
        "1/0 at /runs/a/pools/odd-1/odd.py:3", "/runs/a/pools/odd-1", source
    )
    assert told == f"1/0 at {place}"
