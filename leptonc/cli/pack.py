"""`pack`: cut variants out of an artifact, or make a folder for a device without network."""

from __future__ import annotations

from pathlib import Path

import click

from leptonc.errors import require
from runtime_edge.cli import options
from runtime_edge.cli.app import fail
from runtime_edge.cli.complete import variants


@click.command()
@options.artifact
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    shell_complete=variants,
    help="A variant to keep, by its name or target. May be given several times.  [default: all, with --with-runtime]",
)
@click.option(
    "--with-runtime",
    is_flag=True,
    help="Make a folder for a device without network: the artifact, the wheels of the runtime, install.sh and run.sh.",
)
@click.option(
    "--platform",
    metavar="NAME",
    help="Platform of the wheels, such as manylinux_2_35_aarch64.  [default: what the targets say, else this machine]",
)
@click.option(
    "--python-version",
    "python",
    metavar="VERSION",
    help="Python of the wheels, such as 3.10.  [default: what the targets say, else this one]",
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The artifact or folder to write.",
)
@click.option("--force", is_flag=True, help="Replace an artifact or folder of ours that is already at OUT.")
@options.as_json
def pack(
    artifact: Path,
    only: tuple[str, ...],
    with_runtime: bool,
    platform: str | None,
    python: str | None,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Cut variants out of an artifact, for copying to a device.

    Every file is checked while it is copied. The artifact itself is not changed. With --with-runtime the device needs
    Python and nothing else: install.sh installs the wheels without a network, run.sh runs the model. pip downloads the
    wheels on this machine, by its own settings (PIP_INDEX_URL, PIP_FIND_LINKS).
    """
    from runtime_edge.cli.console import megabytes, print_json

    require("onnx_ir", extra="compiler", needed_by="leptonc pack")
    from leptonc.artifact.pack import pack as cut

    if with_runtime:
        _with_runtime(artifact, only, platform, python, out, force, as_json)
        return
    if not only:
        fail("missing option '--only'", hint="name the variants to keep, or add --with-runtime, which takes all")
    if platform is not None or python is not None:
        fail("--platform and --python-version choose wheels", hint="add --with-runtime")
    manifest = cut(artifact, only, out, replace=force)
    if as_json:
        print_json({"path": str(out), "manifest": manifest})
        return
    size = sum(file.size for file in manifest.files)
    click.echo(f"{out}: {', '.join(variant.name for variant in manifest.variants)}, {megabytes(size)}")


def _with_runtime(
    artifact: Path,
    only: tuple[str, ...],
    platform: str | None,
    python: str | None,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    from leptonc.bundle.write import write_bundle
    from runtime_edge.cli.console import StageProgress, megabytes, print_json, print_pairs

    bundle = write_bundle(
        artifact, only, out, platform=platform, python=python, replace=force, progress=StageProgress()
    )
    device = bundle.device
    if as_json:
        print_json(
            {
                "path": str(out),
                "platform": device.platform,
                "python": device.python_version,
                "extras": device.extras,
                "files": bundle.files,
                "bytes": bundle.size,
                "manifest": bundle.manifest,
            }
        )
        return
    wheels = sum(name.endswith(".whl") for name in bundle.files)
    print_pairs(
        [
            ("folder", str(out)),
            ("for", f"Python {device.python_version} on {device.platform}"),
            ("variants", ", ".join(variant.name for variant in bundle.manifest.variants)),
            ("wheels", f"{wheels}, with lepton-edge[{','.join(device.extras)}]"),
            ("size", megabytes(bundle.size)),
            ("next", "copy it to the device; there ./install.sh, then ./run.sh PROMPT"),
        ]
    )
