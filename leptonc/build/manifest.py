"""Makes the manifest of a build."""

from __future__ import annotations

from leptonc.artifact.describe import parts_of, settings_of, tokenizer_of, toolchain
from leptonc.build.context import BuildContext
from runtime_edge.manifest import FORMAT, FORMAT_VERSION, REPORT_NAME, Manifest, Variant


def manifest_of(context: BuildContext, variants: tuple[Variant, ...]) -> Manifest:
    """Returns the manifest of what is written so far, with these variants."""
    captured, source, writer = context.captured, context.source, context.writer
    return Manifest(
        format=FORMAT, format_version=FORMAT_VERSION, name=source.name, task=captured.task.name,
        architecture=str(captured.config.model_type), parameters=captured.parameters, source=dict(source.origin),
        tokenizer=tokenizer_of(source, captured), variants=variants, files=writer.listing(),
        parts=parts_of(captured, context.plan.options.kv_cache), settings=settings_of(captured, source),
        passes=tuple(context.records), toolchain=toolchain(),
        report=REPORT_NAME if REPORT_NAME in writer.files else None,
    )  # fmt: skip
