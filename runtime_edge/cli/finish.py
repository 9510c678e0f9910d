"""`finish`: build on the device what can only be built there."""

from __future__ import annotations

from pathlib import Path

import click

from runtime_edge.cli import options
from runtime_edge.cli.complete import variants
from runtime_edge.cli.console import StageProgress, megabytes, print_json


@click.command()
@options.artifact
@click.option(
    "--variant",
    metavar="NAME",
    shell_complete=variants,
    help="The variant to finish.  [default: the first that fits this device]",
)
@options.as_json
def finish(artifact: Path, variant: str | None, as_json: bool) -> None:
    """Build the TensorRT engine that this device needs, if it is missing.

    The artifact is verified and not changed; the plan is kept in the cache (LEPTON_CACHE), for this artifact, GPU and
    version of TensorRT alone. Exit code 4 where TensorRT or the driver is missing.
    """
    from runtime_edge.tensorrt.callbacks import PROGRESS_STEPS, Advance
    from runtime_edge.tensorrt.plans import finish as finish_artifact

    with StageProgress().stage("finishing", PROGRESS_STEPS) as advance:

        def waiting() -> None:
            click.echo("another process is building this plan: waiting for it", err=True)

        done = finish_artifact(artifact, variant, progress=Advance(advance), waiting=waiting)
    plan, record = done.plan, done.plan.record
    if as_json:
        print_json(
            {
                "variant": done.variant,
                "built": done.built,
                "plan": str(plan.path),
                "bytes": plan.size,
                "sha256": plan.sha256,
                "version": plan.version,
                "compute_capability": done.device.capability,
                "seconds": record.seconds if record else None,
                "peak_memory": record.peak_memory if record else None,
            }
        )
        return
    click.echo(
        f"{done.variant}: {'built' if done.built else 'ready'}, {megabytes(plan.size)}, TensorRT {plan.version}, "
        f"compute capability {done.device.capability}"
    )
    if done.built and record is not None:
        memory = f", {megabytes(record.peak_memory)} of memory at most" if record.peak_memory is not None else ""
        click.echo(f"{record.seconds:.1f} s{memory}")
    click.echo(str(plan.path))
