"""Writes the captured graph as it is, with all that makes its directory a source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from leptonc.build.context import BuildContext
from leptonc.build.emitted import about_of
from leptonc.build.memory_bound import WRITING, ModelSizes, bytes_of
from leptonc.build.plan import BuildPlan
from leptonc.build.step import Need, VariantStep
from leptonc.build.work import Work, work
from leptonc.sources.emitted import GRAPH_NAME, encode
from leptonc.variant import VariantBuild
from runtime_edge.manifest import EMITTED_NAME
from sample_models.export import write_model_files


class WriteEmitted(VariantStep):
    """Writes the graph and its weights, the model's other files, and what describes them."""

    name: ClassVar[str] = "weights"

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield Need("writing a weight", WRITING + 2 * sizes.largest)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("weights", written=2 * sizes.whole)

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        source, writer, model = context.source, context.writer, variant.graph
        with context.clock.stage("weights", bytes_of(model)) as advance:
            writer.add_graph(GRAPH_NAME, model, advance, sources=True)
        write_model_files(source, writer.path)
        writer.add("tokenizer.json", source.tokenizer_json)
        writer.add(EMITTED_NAME, encode(about_of(context)))
        return variant
