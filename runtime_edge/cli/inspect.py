"""`inspect`: what an artifact holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from runtime_edge.cli import options
from runtime_edge.cli.console import megabytes, print_json, print_pairs
from runtime_edge.files import MANIFEST_NAME
from runtime_edge.manifest import CACHE_DTYPES, EMITTED_NAME, REPORT_NAME

_MAX_REPORT_BYTES = 16 * 2**20
_FEW = 8  # rows of a table that a person reads here
_BAR = 32  # characters


@click.command()
@options.artifact
@click.option("--structure", is_flag=True, help="Show heads, groups and channels of each layer, and what was pruned.")
@click.option("--recipe", is_flag=True, help="Print the recipe that builds the artifact again, as TOML.")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Copy the report for people, one file, to FILE."
)
@options.as_json
def inspect(artifact: Path, structure: bool, recipe: bool, html: Path | None, as_json: bool) -> None:
    """Show what an artifact holds and how good it is.

    Reads the manifest and the measured quality report only; `verify` checks the rest. A graph that `build --emit onnx`
    wrote is shown likewise.
    """
    from runtime_edge.errors import ArtifactError
    from runtime_edge.toml_writer import toml
    from runtime_edge.verify import read_manifest

    about = artifact / EMITTED_NAME
    emitted = about.is_file() and not about.is_symlink() and not (artifact / MANIFEST_NAME).exists()
    manifest: Any = _json(artifact, EMITTED_NAME) if emitted else read_manifest(artifact)
    report = _report(artifact, REPORT_NAME if emitted else manifest.report)
    if html is not None:
        _copy_page(artifact, () if emitted else manifest.files, html)
    elif recipe:
        if not isinstance(report.get("recipe"), dict):
            raise ArtifactError(f"{artifact}: expected a report with a recipe, found none")
        click.echo(toml(report["recipe"]) or "# all options have their defaults\n", nl=False)
    elif structure:
        sections = {name: report.get(name, {}) for name in ("structure", "pruning")}
        if as_json:
            print_json(sections)
        else:
            print_pairs([*_layers(sections["structure"]), *_cut(sections["pruning"])])
    elif as_json:
        print_json({"about" if emitted else "manifest": manifest, "report": report})
    else:
        rows = _graph_rows(manifest) if emitted else _rows(manifest)
        warnings, _ = report.pop("warnings", []), report.pop("schema_version", None)
        _shorten(_object(report.get("variants")))
        warned = [("warning", str(warning)) for warning in warnings] if isinstance(warnings, list) else []
        print_pairs([*rows, *warned, *(("", ""), *_flat(report)) * bool(report)])


def _shorten(variants: dict[str, Any]) -> None:
    """Takes out what is for the page, and what a report of one variant says twice."""
    for variant in map(_object, variants.values()):
        variant.pop("examples", None)
        if len(variants) == 1:
            variant.pop("fidelity", None)


def _layers(widths: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Heads, groups and channels of each layer, with a bar as long as its channels among the widest layer's."""
    yield "residual width", str(widths.get("residual", "not in the report"))
    channels = widths.get("mlp_channels", [])
    for layer, (heads, groups, wide) in enumerate(
        zip(widths.get("heads", []), widths.get("kv_heads", []), channels, strict=True)
    ):
        bar = "#" * -(-_BAR * wide // max(channels))
        yield f"layer {layer}", f"heads {heads:3}  groups {groups:3}  channels {wide:6}  {bar}"


def _cut(pruning: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was cut, and what is left of each block that was."""
    for name in ("asked", "method", "compensation", "removed_percent"):
        if name in pruning:
            yield f"pruning {name.replace('_', ' ')}", str(pruning[name])
    yield from ((name, str(left)) for name, left in pruning.get("blocks", {}).items())


def _copy_page(artifact: Path, files: Sequence[Any], out: Path) -> None:
    """Copies the page that the artifact has, if it is what the manifest says."""
    from hashlib import sha256

    from runtime_edge.errors import ArtifactError
    from runtime_edge.manifest import PAGE_NAME
    from runtime_edge.writing import write_output

    listed = next((file for file in files if file.path == PAGE_NAME), None)
    path = artifact / PAGE_NAME
    if listed is None or path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{artifact}: expected {PAGE_NAME}, found none", hint="`inspect` shows the report as text")
    with path.open("rb") as file:
        data = file.read(listed.size + 1)
    if sha256(data).hexdigest() != listed.sha256:
        raise ArtifactError(f"{PAGE_NAME}: expected sha256 {listed.sha256}, found another", hint="rebuild the artifact")
    write_output(out, data)


def _report(artifact: Path, name: str | None) -> dict[str, Any]:
    """The quality report; empty where there is none."""
    # The manifest was not verified: no other name is opened, so that it cannot lead outside of the artifact.
    return {} if name != REPORT_NAME or (artifact / REPORT_NAME).is_symlink() else _json(artifact, REPORT_NAME)


def _json(artifact: Path, name: str) -> dict[str, Any]:
    """A file of the directory, which holds an object."""
    from runtime_edge.errors import ArtifactError

    try:
        with (artifact / name).open("rb") as file:
            content = msgspec.json.decode(file.read(_MAX_REPORT_BYTES), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise ArtifactError(f"{name}: expected a JSON object, found: {error}") from error
    return content


def _graph_rows(about: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What `build --emit onnx` says of its graph."""
    yield "graph", "float32 ONNX, a SOURCE of leptonc build"
    for name in ("task", "parameters", "max_seq_len"):
        if name in about:
            yield name.replace("_", " "), f"{about[name]:,}" if isinstance(about[name], int) else str(about[name])
    for key, value in sorted(_object(about.get("origin")).items()):
        yield f"source {key}", str(value)
    passes = about.get("passes")
    names = [str(_object(entry).get("name")) for entry in passes] if isinstance(passes, list) else []
    yield "passes", ", ".join(names) or "none"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _rows(manifest: Any) -> Iterator[tuple[str, str]]:
    yield "name", manifest.name
    yield "task", manifest.task
    yield "architecture", manifest.architecture
    yield "parameters", f"{manifest.parameters:,}"
    yield "size", megabytes(sum(file.size for file in manifest.files))
    for key, value in sorted(manifest.source.items()):
        yield f"source {key}", value
    for variant in manifest.variants:
        yield f"variant {variant.name}", ", ".join(_variant(manifest, variant))
    if len(manifest.parts) > 1:
        yield "parts", ", ".join(part.name for part in manifest.parts)
    if manifest.decoder is not None:
        yield "vocabulary", f"{manifest.decoder.vocab_size:,}"
        yield "context", f"{manifest.decoder.max_seq_len:,} tokens"
        yield "cache", _cache(manifest.decoder)
        yield "chat template", "yes" if manifest.tokenizer.chat_template else "no"
    if manifest.encoder is not None:
        yield "output", f"{manifest.encoder.output}, {manifest.encoder.dim} numbers a text"
        yield "context", f"{manifest.encoder.max_seq_len:,} tokens"
        yield from _encoder(manifest.encoder)
    yield "passes", ", ".join(record.name for record in manifest.passes) or "none"
    for key, value in sorted(manifest.toolchain.items()):
        yield f"built with {key}", value


def _encoder(encoder: Any) -> Iterator[tuple[str, str]]:
    """What is done to an encoder's texts and to its output."""
    if encoder.labels:
        yield "labels", ", ".join(encoder.labels)
        yield "scores", encoder.score_function
        return
    for name, text in sorted(encoder.prompts.items()):
        yield f"prompt {name}", repr(text) + (", the default" if name == encoder.default_prompt else "")
    if encoder.truncate_dim is not None:
        yield "dimensions", f"{encoder.truncate_dim} of {encoder.dim}, unless others are asked for"
    yield "similarity", encoder.similarity


def _variant(manifest: Any, variant: Any) -> Iterator[str]:
    """What a variant is, what it takes, and what is there of its engine."""
    yield from (variant.target, variant.backend, f"weights {variant.weights}")
    yield f"activations {variant.main.activations}"
    sizes = {file.path: file.size for file in manifest.files}
    others = {blob for other in manifest.variants if other is not variant for blob in other.blobs}
    yield f"{megabytes(sum(sizes[blob] for blob in variant.blobs))} of weights"
    if shared := others & set(variant.blobs):
        yield f"{megabytes(sum(sizes[blob] for blob in shared))} of them shared"
    if variant.engine is None:
        return
    spec = variant.engine.spec
    yield f"for {spec.flavour} {spec.versions}, compute capability {' '.join(spec.compute_capabilities)}"
    yield f"cache {variant.engine.cache_dtype}, {'in place' if variant.engine.cache_in_place else 'in two buffers'}"
    for plan in variant.engine.plans:
        yield f"plan of {plan.version}, {megabytes(sizes[plan.file])}"
    if not variant.engine.plans:
        yield "engine finished on the device"


def _cache(decoder: Any) -> str:
    item = CACHE_DTYPES[decoder.cache_dtype]
    a_token = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in decoder.cache) * item
    return f"{len(decoder.cache)} layers of {decoder.cache_dtype}, {a_token / 1024:.1f} KiB a token"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested JSON for a person: `fidelity max_abs_diff`, `0.0012`; counts of things in one row."""
    if isinstance(value, dict) and len(value) > 1 and all(type(item) is int for item in value.values()):
        ordered = sorted(value.items(), key=lambda item: -item[1])
        yield name, ", ".join(f"{key} {count:,}" for key, count in ordered)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name} {key}".strip())
    elif isinstance(value, list) and len(value) > _FEW and isinstance(value[0], dict):
        yield name, f"{len(value)} rows, in report.html and with --json"
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name} {index}")
    elif isinstance(value, list) and len(value) > 1 and value.count(value[0]) == len(value):
        yield name, f"{value[0]} ({len(value)} times)"
    else:
        yield name, f"{value:.6g}" if isinstance(value, float) else str(value)
