"""Artifacts that another installation built and ran: the answers are the same here.

`.ci/run` writes them with the main environment, and runs this file on Python 3.10, whose last ONNX Runtime is 1.23, and
on 3.13.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.runtime_edge.carried import BUILDS, answers

FOLDER = os.environ.get("LEPTON_ARTIFACTS")
# Sums of float32 in another order. Where activations are integers, such a difference may move one to the next integer,
# which these made-up models pass on: by a tenth of what the quantization itself costs them (llama's logits: 0.6).
TOLERANCES = {"window": 1e-4, "int4": 0.05, "int8": 0.15, "w8a8": 0.15, "prefill": 0.5, "encoder": 0.02}


@pytest.mark.skipif(FOLDER is None, reason="LEPTON_ARTIFACTS names no folder that tests.runtime_edge.carried wrote")
@pytest.mark.parametrize("name", BUILDS)
def test_the_answers_are_the_same(name: str) -> None:
    folder = Path(str(FOLDER))
    found = answers(folder / f"{name}.lepton")
    with np.load(folder / f"{name}.npz") as stored:
        assert found.keys() == set(stored.files)
        for key, expected in stored.items():
            if key == "tokens":
                assert found[key].tolist() == expected.tolist()
            else:
                np.testing.assert_allclose(found[key], expected, rtol=0, atol=TOLERANCES[name])
