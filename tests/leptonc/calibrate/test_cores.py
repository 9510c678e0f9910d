"""What runs side by side: results in order, few ahead of their reader, and threads as they were afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from leptonc.calibrate import cores
from leptonc.calibrate.cores import sharing_cores, side_by_side


@pytest.mark.parametrize("runs", [1, 3])
def test_results_come_in_the_order_of_the_items(runs: int) -> None:
    def late(at: int) -> int:
        time.sleep(0.01 * (at % 3 == 0))  # each third overtakes nobody
        return at * at

    assert list(side_by_side(late, range(20), runs)) == [at * at for at in range(20)]


def test_few_items_are_ahead_of_the_reader() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for at in range(50):
            read.append(at)
            yield at

    results = side_by_side(lambda at: at, items(), 2)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert len(read) <= 4 + 2
    results.close()


def test_an_error_reaches_the_reader() -> None:
    def fails(at: int) -> int:
        if at == 2:
            raise ValueError("the third")
        return at

    results = side_by_side(fails, range(5), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)


def test_threads_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    library = cores._openblas()
    before = torch.get_num_threads(), library and library[0]()
    with sharing_cores():
        assert torch.get_num_threads() == 1
        assert library is None or library[0]() == 1
        x = np.ones((300, 300), np.float32)
        assert float((x @ x).sum()) == 300.0**3
    assert (torch.get_num_threads(), library and library[0]()) == before
