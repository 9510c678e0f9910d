"""Parts of charts: ticks, where labels stand, and that points lie where their axes say."""

from __future__ import annotations

import itertools
import math
import random
import re

import pytest

from leptonc.pages.axes import Axis, number, shortened, text_width
from leptonc.pages.charts import NARROW, SIZE, WIDE, Dot, scatter
from leptonc.pages.kinds import Scale, place_of
from leptonc.pages.labels import Box, place, ranges, spread, together


@pytest.mark.parametrize("log", [False, True])
def test_points_lie_where_their_axes_say(log: bool) -> None:
    values = [1.0, 10.0, 100.0]
    x, y = Axis.over("x", values, log=log), Axis.over("y", values, log=log)
    drawn = scatter("t", "about", [Dot(v, v, "p", i) for i, v in enumerate(values)], x, y, line=(0, 1, 2))
    for width, part in zip((WIDE, NARROW), drawn.split("</svg>"), strict=False):
        centres = [tuple(map(float, c)) for c in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', part)]
        steps = [(b[0] - a[0], a[1] - b[1]) for a, b in itertools.pairwise(centres)]
        for axis in (0, 1):
            assert steps[1][axis] / steps[0][axis] == pytest.approx(1.0 if log else 10.0, rel=0.02)
        assert all(0 < cx < width and 0 < cy < 340 for cx, cy in centres)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("most", [2, 3, 5, 8])
def test_ticks_are_few_round_distinct_and_inside(log: bool, most: int) -> None:
    draw = random.Random(most)
    for _ in range(300):
        low = 10 ** draw.uniform(-6, 6)
        axis = Axis.over("x", [low, low * (1 + 10 ** draw.uniform(-3, 5))], log=log)
        ticks = axis.named(most)
        assert 2 <= len(ticks) <= most
        assert all(axis.low <= value <= axis.high for value, _ in ticks)
        assert len({name for _, name in ticks}) == len(ticks)
        for value, name in ticks:  # a text says where it stands
            assert axis.at(float(name.replace(",", ""))) == pytest.approx(axis.at(value), abs=2e-3)


def test_ticks_of_known_axes() -> None:
    assert Axis("x", 0.0, 7.9).ticks(8) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [name for _, name in Axis("x", 99.99, 100.21).named(5)] == ["100", "100.05", "100.1", "100.15", "100.2"]
    assert Axis("x", 60.0, 700.0, log=True).ticks(4) == [100, 200, 500]
    assert Axis("x", 1e-6, 10.0, log=True).ticks(4) == [1e-6, 1e-4, 1e-2, 1]


def test_axes_of_a_single_value_and_of_zeros() -> None:
    for values in ([5.0], [0.0, 0.0], [-1.0]):
        for zero in (False, True):
            axis = Axis.over("x", values, zero=zero)
            assert 0 < axis.at(values[0]) < 1 or (zero and axis.at(values[0]) == 0)
            assert len(axis.ticks()) > 1
    assert (number(1234567.0), number(0.000123456), number(12.5)) == ("1,234,567", "0.0001235", "12.5")


def test_long_texts_lose_their_middles() -> None:
    name = "a-name-that-is-much-too-long-for-its-place"
    for width in (20, 60, 150):
        short = shortened(name, width, SIZE)
        assert text_width(short, SIZE) <= width
        assert short[0] in "a…"
        assert short[-1] in "e…"
    assert shortened("short", 100, SIZE) == "short"


@pytest.mark.parametrize(("count", "extent"), [(1, 0.0), (6, 5.0), (8, 20.0), (12, 60.0), (20, 250.0)])
def test_labels_stay_inside_and_apart(count: int, extent: float) -> None:
    draw = random.Random(count)
    bounds, size = Box(0, 0, 300, 220), (20.0, 14.0)
    low, high = 150 - extent / 2, 150 + extent / 2
    points = [(draw.uniform(low, high), draw.uniform(60, 60 + extent / 2)) for _ in range(count)]
    labels = place(points, [size] * count, bounds)
    boxes = [label.box for label in labels if label is not None]
    assert len(boxes) == count  # all have room
    assert all(box.inside(bounds) for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for box in boxes:
        assert not any(box.overlaps(Box(x - 6, y - 6, x + 6, y + 6)) for x, y in points)
    lines = [(point, label.line) for point, label in zip(points, labels, strict=True) if label and label.line]
    assert not any(box.crosses(*line) for line in lines for box in boxes if not _touches(box, line[1]))
    for point, label in zip(points, labels, strict=True):  # a label that is far from its point has a line to it
        assert label is not None
        assert label.line is not None or math.dist(label.box.nearest(point), point) < 16


def _touches(box: Box, point: tuple[float, float]) -> bool:
    return box.nearest(point) == pytest.approx(point)


def test_points_on_each_other_share_a_label() -> None:
    groups = together([(0, 0), (50, 0), (1, 1), (2, 0), (50, 2)], 3)
    assert groups == [[0, 2, 3], [1, 4]]
    assert [ranges([i + 1 for i in group]) for group in groups] == ["1, 3, 4", "2, 5"]
    assert ranges([1, 2, 3, 4, 7, 8, 10, 11, 12]) == "1–4, 7, 8, 10–12"
    axis = Axis("x", 0.0, 2.0)
    drawn = scatter("t", "about", [Dot(1, 1, f"n{i}", i) for i in range(1, 9)], axis, axis)
    assert drawn.count("<circle") == 16
    assert ">1–8</text>" in drawn  # on a narrow page


def test_a_label_without_room_is_none() -> None:
    assert place([(5, 5)], [(50, 14)], Box(0, 0, 40, 40)) == [None]
    assert place([(20, 20)] * 9, [(12, 12)] * 9, Box(0, 0, 40, 40)).count(None) > 0


def test_marks_of_an_axis_have_room() -> None:
    assert spread([10, 20, 30, 40], [8, 8, 8, 8], 0, 50, gap=1) == [0, 1, 2, 3]
    assert spread([10, 20, 30, 40], [12, 12, 12, 12], 0, 50, gap=1) == [0, 2]
    assert spread([10, 20], [30, 30], 0, 40) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("model.layers.3.self_attn.q_proj", "attention"), ("h.0.attn.c_attn", "attention"),
        ("encoder.layer.1.attention.output.dense", "attention"), ("encoder.layer.1.output.dense", "MLP"),
        ("model.layers.11.mlp.down_proj", "MLP"), ("transformer.layer.0.ffn.lin1", "MLP"),
        ("lm_head", "head"), ("classifier", "head"), ("model.layers.0.input_layernorm", "norm"),
    ],
)  # fmt: skip
def test_kinds_of_layers(path: str, kind: str) -> None:
    assert place_of(path).kind == kind
    assert place_of(path, embedding=True).kind == "embedding"


def test_columns_are_the_embedding_layers_in_order_and_the_head() -> None:
    paths = ["model.layers.10.mlp.up", "model.layers.2.mlp.up", "lm_head", "model.layers.2.self_attn.q"]
    scale = Scale.of([place_of("embed", embedding=True), *map(place_of, paths)])
    assert scale.columns == ("embedding", "2", "10", "head")
    assert scale.shapes["MLP", "mlp.up"] == scale.shapes["attention", "self_attn.q"] == 0
