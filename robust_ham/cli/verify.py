"""``robust-ham verify``: check files, tables, inputs, stored images and some attacks of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robust_ham.cli import exit_codes
from robust_ham.cli.options import DataRoot, Debug, Device
from robust_ham.cli.output import complain, say
from robust_ham.cli.preparation import check_attacks_package
from robust_ham.config.bounds import MAX_JOBS
from robust_ham.errors import RequestError

if TYPE_CHECKING:
    from robust_ham.runs.plan.context import Context


def verify(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Run folder.")],
    cells: Annotated[
        int, typer.Option(min=0, max=MAX_JOBS, help="Number of attack jobs to repeat.")
    ] = 3,
    data_root: DataRoot = None,
    device: Device = "auto",
    debug: Debug = False,
) -> int:
    """Check the files, tables, images and some attacks of a run.

    Tables and inputs are recomputed, stored images are scored again, some attacks are repeated.
    Files are compared with the checksums in SHA256SUMS and in receipts. A changed, missing or
    added file is a fault. Logs (run.log, timings.csv) have no checksum.
    """
    check_attacks_package()
    import torch

    from robust_ham.analysis.run import Run
    from robust_ham.runs.plan.context import Context
    from robust_ham.runs.plan.plan import make_plan
    from robust_ham.runs.runner import choose_device
    from robust_ham.runs.verify import verify as verification_steps
    from robust_ham.storage.run_folder import RunFolder

    chosen_device, folder = choose_device(device), RunFolder(run_dir)

    def make_context() -> Context:
        config = Run(folder).config
        torch.set_num_threads(config.evaluation.threads)
        return Context(make_plan(config, data_root), folder, chosen_device)

    code = 0
    try:
        for check in verification_steps(folder, make_context, cells, say):
            for line in check.lines():
                say(line)
            for fault in check.faults:
                complain(fault)
                code = exit_codes.JOBS
    except RequestError as error:  # e.g. missing data; faults found so far still count
        error_code = exit_codes.report_error(error)
        code = code or error_code
    return code
