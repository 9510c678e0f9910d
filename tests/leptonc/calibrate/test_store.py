"""Arrays beyond a number of bytes wait on disk: as they were, out of memory, in few files, and gone when released."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from leptonc.calibrate import store as store_module
from leptonc.calibrate.store import Store

PROC = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="looks at this process with Linux' /proc")


def mapped(folder: Path) -> int:
    """Kilobytes of files in a folder that are in memory."""
    text, found = Path("/proc/self/smaps").read_text(encoding="utf-8"), 0
    for part in text.split(str(folder.resolve()))[1:]:
        found += next(int(line.split()[1]) for line in part.splitlines() if line.startswith("Rss:"))
    return found


@PROC
def test_what_waits_on_disk_is_not_in_memory_after_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(store_module, "RESIDENT", 10**8)
    store = Store(4 * 10**6, tmp_path)
    made = [np.full(10**6, i, np.float32) for i in range(6)]
    held = [store.put(each) for each in made]
    assert [each.flags.owndata for each in held] == [True] + [False] * 5
    for each, want in zip(held, made, strict=True):
        np.testing.assert_array_equal(each, want)
    assert mapped(tmp_path) > 5 * 3900
    store.used(79 * 10**6)  # and 20 were put
    assert mapped(tmp_path) > 5 * 3900
    store.used(10**6)
    assert mapped(tmp_path) < 100
    np.testing.assert_array_equal(held[3], made[3])
    for each in held:
        store.release(each)
    assert not list(tmp_path.iterdir())
    assert store.put(made[0]).flags.owndata  # there is room again


@PROC
@pytest.mark.parametrize("folder", ["real", "link"])
def test_released_arrays_leave_no_descriptors_and_no_bytes(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """In a directory that is named relatively, and in one behind a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store_module, "FILE", 10**5)
    store, before = Store(0, Path(folder)), len(os.listdir("/proc/self/fd"))
    for i in range(300):
        array = store.put(np.full((10, 100), i, np.float32))
        assert array[9, 99] == i
        store.release(array)
        del array
    assert len(os.listdir("/proc/self/fd")) <= before
    held = [store.put(np.full(1000, i, np.float32)) for i in range(300)]  # 24 of them are in one file
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 13
    assert [int(each[0]) for each in held] == list(range(300))
    for each in reversed(held):
        store.release(each)
    del held, each
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not list((tmp_path / "real").iterdir())
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.bool_, np.float16])
def test_arrays_come_back_as_they_were(kind: type, tmp_path: Path) -> None:
    store, random = Store(0, tmp_path), np.random.default_rng(0)
    made = [random.integers(0, 2, shape).astype(kind) for shape in [(3, 5, 7), (2, 1), (1,), (), (33, 5)]]
    turned = np.asfortranarray(random.integers(0, 9, (4, 6)).astype(kind))
    held = [store.put(each) for each in (*made, turned, turned[::2, 1:])]
    for each, want in zip(held, (*made, turned, turned[::2, 1:]), strict=True):
        assert (each.shape, each.dtype) == (want.shape, want.dtype)
        np.testing.assert_array_equal(each, want)
    assert store.put(np.zeros((0, 4), kind)).shape == (0, 4)


def test_an_array_that_is_larger_than_a_file_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "FILE", 1000)
    store = Store(0, tmp_path)
    small, large, next_one = (store.put(np.arange(count)) for count in (10, 5000, 20))
    assert (small[-1], large[-1], next_one[-1]) == (9, 4999, 19)
    store.release(large)
    assert (small[-1], next_one[-1]) == (9, 19)
