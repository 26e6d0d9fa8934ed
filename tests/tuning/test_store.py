"""Entries on disk: shared, whole or not there, never trusted."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aatc.errors import AatcWarning, ScheduleError
from aatc.tuning import Schedules, load, store
from aatc.tuning.entry import Entry
from tests.tuning.bench import entry, key

ROOT = Path(__file__).parents[2]


def the_file(cache: Path) -> Path:
    (path,) = [p for p in cache.iterdir() if p.suffix == ".json"]
    return path


def test_what_is_put_is_found(cache):
    e = entry()
    assert store.get(e.key) is None
    store.put(e)
    assert store.get(e.key) == e and store.kept() == [e]
    assert store.get(key(cores="4")) is None
    store.put(entry("split(i, 16)"))
    assert store.get(e.key).schedule == "split(i, 16)" and len(store.kept()) == 1
    assert (cache.stat().st_mode & 0o777, the_file(cache).stat().st_mode & 0o777) == (0o700, 0o600)


def test_without_a_folder_entries_live_as_long_as_the_process(cache, monkeypatch):
    monkeypatch.setenv("AATC_CACHE", "off")
    store.put(entry())
    assert store.get(key()) == entry() and store.kept() == [entry()] and not cache.exists()


def test_another_process_finds_it(cache):
    store.put(entry())
    code = "from aatc.tuning import store; from tests.tuning.bench import *; print(store.get(key()) == entry())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True\n", done.stderr


def _write(n: int) -> None:
    for _ in range(30):
        store.put(entry(f"split(i, {n})"))


def test_writers_at_once_leave_whole_entries(cache):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(n,)) for n in (1, 2, 3)]
    for w in writers:
        w.start()
    seen = set()
    while any(w.is_alive() for w in writers):
        found = store.get(key())
        seen.add(None if found is None else found.schedule)
    for w in writers:
        w.join()
    assert seen <= {None, "split(i, 1)", "split(i, 2)", "split(i, 3)"} and store.get(key()) is not None
    assert [p.suffix for p in cache.iterdir()] == [".json"]


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-20],
        lambda data: data.replace(b"split(i, 32)", b"split(i, 33)"),
        lambda data: b"\xff" * 200,
        lambda data: DEEP.encode(),
        lambda data: data.partition(b"\n")[0] + b"\n{}\n",
        lambda data: data + b"x" * (2 << 20),
    ],
)
def test_a_damaged_entry_is_left_out_with_one_warning(cache, spoil):
    store.put(entry())
    path = the_file(cache)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.warns(AatcWarning, match="are not used") as caught:
        assert store.get(key()) is None
        assert store.get(key()) is None and store.kept() == []
    assert len(caught) == 1
    store.put(entry())
    assert store.get(key()) == entry()


def test_an_entry_under_another_name_is_not_believed(cache):
    store.put(entry())
    the_file(cache).rename(cache / f"{key(cores='2').digest}.json")
    with pytest.warns(AatcWarning, match="not what its name says"):
        assert store.get(key(cores="2")) is None


def test_what_others_may_write_is_not_read(cache):
    store.put(entry())
    the_file(cache).chmod(0o666)
    with pytest.warns(AatcWarning, match="other users may write"):
        assert store.get(key()) is None
    the_file(cache).chmod(0o600)
    cache.chmod(0o777)
    with pytest.warns(AatcWarning, match="other users may write"):
        store.put(entry("split(i, 16)"))
    cache.chmod(0o700)
    assert store.get(key()) == entry()


def test_folders_pipes_and_links_to_nothing_are_no_entries(cache):
    store.put(entry())
    path = the_file(cache)
    path.unlink()
    path.symlink_to(cache / "nothing")
    assert store.get(key()) is None
    path.unlink()
    path.mkdir()
    with pytest.warns(AatcWarning, match="folder"):
        assert store.get(key()) is None
    other = cache / f"{key(cores='2').digest}.json"
    os.mkfifo(other)
    with pytest.warns(AatcWarning, match="not a file"):
        assert store.get(key(cores="2")) is None


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AATC_CACHE", str(tmp_path / "file"))
    with pytest.warns(AatcWarning, match="nothing can be kept"):
        store.put(entry())
    assert store.get(key()) is None


def test_a_miss_says_which_field_differs():
    assert store.miss(key()) == "nothing is kept for this attention"
    store.put(entry(keys="1025 to 2048"))
    store.put(entry(keys="1025 to 2048", cores="4", device="z80", torch="1"))
    assert store.miss(key(keys="513 to 1024")) == "what is kept is for keys 1025 to 2048, here 513 to 1024"
    assert store.miss(key(keys="any", cores="8")).startswith("what is kept is for keys 1025 to 2048, here any; cores x")
    assert store.miss(key(statement="other")) == "nothing is kept for this attention"


# --- files -------------------------------------------------------------------------------------------------------
def test_exported_schedules_come_back(tmp_path):
    found = Schedules((entry(), entry("split(i, 16)", cores="64")), ("a note",))
    path = found.export(tmp_path / "x.json")
    back = load(path)
    assert back.entries == found.entries
    assert back.find(key()) == entry() and back.find(key(cores="64")).schedule == "split(i, 16)"
    assert back.find(key(cores="7")) is not None and back.find(key(keys="1")) is None


def spoiled(**changes):
    item = entry().to_json() | changes
    return json.dumps({"format": "aatc schedules 1", "schedules": [item]})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is JSON"),
        (DEEP, "is JSON"),
        ("[]", "no file of"),
        ('{"format": "aatc schedules 9", "schedules": []}', "no file of"),
        ('{"format": "aatc schedules 1", "schedules": [3]}', "schedule 0: an entry is an object"),
        (spoiled(schedule="split(i, __import__('os'))"), "schedule 0: schedule is no schedule"),
        (spoiled(schedule=7), "schedule is no text"),
        (spoiled(schedule="split(i, 1) " * 1000), "schedule is no text"),
        (spoiled(key={"cores": "4"}), "its key is not that"),
        (spoiled(key=entry().to_json()["key"] | {"cores": 4}), "cores is no text"),
        (spoiled(seconds=float("nan")), "seconds is no time"),
        (spoiled(seconds="1"), "seconds is no time"),
        (spoiled(tried=-1), "tried is no count"),
        (spoiled(tried=True), "tried is no count"),
        (spoiled(effort="heroic"), "effort 'heroic' is not known"),
        (spoiled(dropped=[["a"]]), "dropped"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_reason(tmp_path, text, why):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ScheduleError, match=why) as error:
        load(tmp_path / "x.json")
    assert error.value.hint


def test_entries_are_their_json():
    assert Entry.of_json(json.loads(json.dumps(entry().to_json()))) == entry()
    assert "0.50 of the default's" in str(entry()) and "1 dropped" in str(entry())
    assert "the default, 1 ms, stays" in str(entry("split(i, 64)"))
