"""Options: the one place that the command line, recipes and the checks of values read."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest

from leptonc.build.recipe import check_values
from leptonc.errors import InputError
from leptonc.options import BuildOptions, option, options_of


def test_every_field_says_what_it_means() -> None:
    told = options_of(BuildOptions)
    assert list(told) == [field.name for field in dataclasses.fields(BuildOptions)]
    assert [name for name, about in told.items() if not about.help.endswith((".", ".)"))] == []


def test_choices_are_those_of_the_code_that_reads_them() -> None:
    from leptonc.build.steps import prune_pattern, prune_units, prune_width
    from leptonc.calibrate.calibrators import calibrators
    from leptonc.formats import FORMATS
    from leptonc.passes.quantize.methods import METHODS

    told = {name: about.choices for name, about in options_of(BuildOptions).items()}
    assert told["weights"] == tuple(FORMATS)
    assert told["method"] == tuple(METHODS)
    assert set(told["prune_method"]) == {prune_units.RECONSTRUCTION, *prune_units.METHODS, *prune_pattern.METHODS}
    assert set(told["prune_compensation"]) == {*prune_units.COMPENSATIONS, *prune_width.COMPENSATIONS}
    assert all(calibrators(str(name)) for name in told["calibrator"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "gtpq"}, "expected method among rtn, gptq, awq, found 'gtpq'"),
        ({"block_size": 48}, "expected block_size among 16, 32, 64, 128, 256, found 48"),
        ({"calibrator": "max"}, "expected calibrator among minmax, "),
        ({"memory_gb": math.inf}, "expected memory_gb of at least 0, found inf"),
        ({"max_seq_len": 0}, "expected max_seq_len of at least 1, found 0"),
        ({"seed": 2**63}, "expected seed from 0 to 9223372036854775807, found 9223372036854775808"),
    ],
)
def test_values_that_no_backend_takes(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_values(dataclasses.replace(BuildOptions("m"), **values))


def test_values_that_may_be() -> None:
    check_values(BuildOptions("m", weights="auto:95MB", block_size=16, memory_gb=0, seed=2**63 - 1, max_loss=-1.0))


def test_a_field_of_another_dataclass_carries_its_option() -> None:
    @dataclasses.dataclass(frozen=True)
    class Two:
        plain: int
        told: str = option("What it means.", "a", choices=("a", "b"), open_choice="c:N")

    (about,) = options_of(Two).values()
    assert (Two(1).told, about.help, about.listed()) == ("a", "What it means.", ["a", "b", "c:N"])
    assert [about.may_be(value) for value in ("a", "c:3", "d")] == [True, True, False]


def test_options_import_nothing_heavy() -> None:
    program = "import sys, leptonc.options; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} & {"click", "numpy", "torch", "onnx"} == set()
