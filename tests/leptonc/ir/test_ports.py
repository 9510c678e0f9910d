"""A graph carries what its inputs and outputs are for, and its clones do."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.ir.ports import add_input, added, describe, input_of, inputs_of, output_of, part_of, text_values
from leptonc.passes.last_logits import KEEP
from runtime_edge import part_record as roles
from runtime_edge.part_record import Port
from tests.leptonc import models


def test_a_clone_is_described_too() -> None:
    model = models.captured("tiny-gemma3").model.clone()
    assert input_of(model.graph, roles.TOKEN_IDS) == "input_ids"
    assert output_of(model.graph, roles.NEXT_TOKEN_LOGITS) == "logits"
    assert input_of(model.graph, roles.ATTENTION_MASK) is None
    part = part_of(model)
    assert [state.window for state in part.states] == [8, 8, None, 8]
    assert part.buffers[1].input == "past_key_values.0.value"
    assert part.outputs[0].dims == ("batch", "length", 512)


def test_inputs_are_given_by_role_whatever_they_are_called() -> None:
    model = models.captured("tiny-bert").model
    (first, *rest) = model.graph.inputs
    first.name = "tokens"
    described = part_of(models.captured("tiny-bert").model)
    ports = (Port(name="tokens", role=roles.TOKEN_IDS, dtype="int64", dims=("batch", "length")), *described.inputs[1:])
    describe(model, "encoder", ports, described.outputs)
    given = inputs_of(model, np.array([5, 6, 7]))
    assert list(given) == ["tokens", *(value.name for value in rest)]
    assert given["tokens"].tolist() == [[5, 6, 7]]


def test_what_a_lowering_adds_is_no_port_of_the_part() -> None:
    model = models.captured("tiny-llama").model
    before = part_of(model).inputs
    value = add_input(model.graph, KEEP)
    assert (value.name, model.graph.inputs[-1]) == ("logits_to_keep", value)
    assert added(model.clone().graph) == (KEEP,)
    assert part_of(model).inputs == before
    with pytest.raises(ValueError, match="a text gives no input logits_to_keep"):
        inputs_of(model, np.array([1, 2]))


def test_a_graph_that_nobody_described_says_so() -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], name="bare"), ir_version=11)
    with pytest.raises(ValueError, match="no description of its inputs"):
        part_of(model)
    assert input_of(model.graph, roles.TOKEN_IDS) is None


def test_values_of_a_text() -> None:
    values = text_values(np.array([[3, 4, 5]]), past=2, skipped=1)
    assert {role: value.tolist() for role, value in values.items()} == {
        "token_ids": [[3, 4, 5]], "past_length": [2], "positions": [[2, 3, 4]], "attention_mask": [[1, 1, 1]],
        "segments": [[0, 0, 0]], "pooling_mask": [[0, 1, 1]],
    }  # fmt: skip
