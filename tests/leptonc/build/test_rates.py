"""How fast a machine is: learnt from builds, kept by machine, and no matter where it cannot be kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leptonc.build import rates as rates_module
from leptonc.build.rates import FILE, MOST, PRODUCT, Rates, products_a_second
from leptonc.build.work import KINDS, work


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rates_module, "products_a_second", lambda: PRODUCT)
    monkeypatch.setattr(rates_module, "_threads", lambda: 1)
    return tmp_path / "cache"


def test_a_machine_that_nothing_is_known_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are as much faster as a measurement says and as cores help, other work is not."""

    def seconds(kind: str) -> float:
        return Rates.here().seconds(work("stage", **{kind: KINDS[kind].rate}))

    assert (seconds("products"), seconds("written")) == pytest.approx((1, 1))
    monkeypatch.setattr(rates_module, "products_a_second", lambda: 3 * PRODUCT)
    assert (seconds("products"), seconds("codes"), seconds("written")) == pytest.approx((1 / 3, 1 / 3, 1))
    monkeypatch.setattr(rates_module, "_threads", lambda: 4)
    assert 1 / 12 < seconds("products") < 1 / 6
    assert (seconds("codes"), seconds("written")) == pytest.approx((1 / 3, 1))
    assert Rates.here().seconds(work("heal", seconds=90)) == 90


def test_the_measurement() -> None:
    assert products_a_second() > 1e7
    assert products_a_second() == products_a_second()


def test_what_a_build_took_is_what_the_next_one_expects(cache: Path) -> None:
    works = [work("codes", products=1e12, codes=5e6), work("check", compared=1e11)]
    before = Rates.here()
    expected = before.seconds(works[0])
    before.learn(works, {"codes": 3 * expected, "check": 12.0, "another": 50.0})
    after = Rates.here()
    assert after.seconds(works[0]) == pytest.approx(3 * expected)
    assert after.seconds(works[1]) == pytest.approx(12)
    assert (cache / FILE).stat().st_mode & 0o022 == 0


def test_stages_of_one_kind_of_work_learn_from_each_other_until_they_come() -> None:
    seen, unseen, other = work("a", products=1e12), work("b", products=1e12), work("c", trials=1e12)
    before = [Rates.here().seconds(each) for each in (seen, unseen, other)]
    Rates.here().learn([seen], {"a": 2 * before[0]})
    assert [Rates.here().seconds(each) for each in (seen, unseen, other)] == pytest.approx(
        [2 * before[0], 2 * before[1], before[2]]
    )
    Rates.here().learn([unseen], {"b": 5 * before[1]})
    assert Rates.here().seconds(unseen) == pytest.approx(5 * before[1])
    assert Rates.here().seconds(seen) == pytest.approx(2 * before[0])


def test_a_stage_of_two_variants_is_learnt_as_a_whole() -> None:
    works = [work("check", compared=1e11), work("check", compared=3e11)]
    Rates.here().learn(works, {"check": 40.0})
    assert [Rates.here().seconds(each) for each in works] == pytest.approx([10, 30])
    assert [pace.builds for pace in Rates.here().known.values()] == [1]


def test_the_newest_builds_count_most() -> None:
    works = [work("check", compared=1e12)]
    for taken in (10.0, 40.0):
        Rates.here().learn(works, {"check": taken})
    assert Rates.here().seconds(works[0]) == pytest.approx(20)
    for _ in range(5):
        Rates.here().learn(works, {"check": 40.0})
    assert Rates.here().seconds(works[0]) == pytest.approx(40, rel=0.05)
    (pace,) = Rates.here().known.values()
    assert (pace.builds, pace.kind) == (7, "compared")


def test_a_machine_that_slept_is_no_slow_one() -> None:
    works = [work("check", compared=1e12)]
    before = Rates.here().seconds(works[0])
    Rates.here().learn(works, {"check": 1e6 * before})
    assert Rates.here().seconds(works[0]) == pytest.approx(MOST * before)


def test_short_stages_and_what_was_not_done_teach_nothing(cache: Path) -> None:
    works = [work("check", compared=1e12), work("heal", seconds=10), work("text", drawn=1e12)]
    works += [work("weights", written=1), work("engine")]
    Rates.here().learn(works, {"check": 0.1, "heal": 60.0, "weights": 60.0, "engine": 60.0})
    assert not (cache / FILE).exists()
    assert Rates.here().known == {}


def test_another_machine_has_rates_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    works = [work("check", compared=1e12)]
    Rates.here().learn(works, {"check": 500.0})
    for name, value in (("cpu_field", lambda name: "Another Processor"), ("usable_cores", lambda: 99)):
        with monkeypatch.context() as patch:
            patch.setattr(rates_module, name, value)
            assert Rates.here().known == {}
            Rates.here().learn(works, {"check": 5.0})
            assert Rates.here().seconds(works[0]) == pytest.approx(5)
    assert Rates.here().seconds(works[0]) == pytest.approx(500)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"version": 99}',
     b'{"version": 1, "machines": {"M": {"check": {"times": 0, "kind": "compared"}}}}',
     b'{"version": 1, "machines": {"M": {"check": {"times": 1e300, "kind": "compared"}}}}',
     b'{"version": 1, "machines": {"M": {"check": {"times": 2}}}}',
     b'{"version": 1, "machines": {"M": {"check": {"times": "slow", "kind": "compared"}}}}'],
)  # fmt: skip
def test_a_broken_file_counts_as_none(content: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates_module, "machine", lambda: "M")
    cache.mkdir()
    (cache / FILE).write_bytes(content)
    assert Rates.here().known == {}
    Rates.here().learn([work("check", compared=1e12)], {"check": 5.0})
    assert json.loads((cache / FILE).read_text())["machines"]["M"]["check, compared"]["builds"] == 1


def test_where_nothing_can_be_kept_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LEPTON_CACHE", str(file))
    rates = Rates.here()
    rates.learn([works := work("check", compared=1e12)], {"check": 5.0})
    assert rates.seconds(works) == pytest.approx(5)
    assert Rates.here().known == {}
    assert file.read_text() == "in the way"
