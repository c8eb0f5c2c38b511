"""``robust-ham import``: third-party checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robust_ham.cli.options import DataRoot, Debug, Device, refuse_nan
from robust_ham.cli.output import say
from robust_ham.cli.preparation import check_attacks_package


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .pth, .pt, .ckpt or .safetensors file.")
    ],
    network: Annotated[
        str,
        typer.Option(
            "--as",
            help="The network, as a group under `models` of a config: cnn, or "
            "'{architecture: cnn, depth: 4, kernel_size: 7, window: hamming}'.",
        ),
    ],
    dataset: Annotated[
        str,
        typer.Option(
            help="Data set on which to measure clean accuracy: cifar10, or '{name: …, …}'."
        ),
    ],
    key: Annotated[
        str | None, typer.Option(help="Which network to read from a file with several.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Mean used for normalisation in training: 0.485,0.456,0.406.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Standard deviation, likewise: 0.229,0.224,0.225.")
    ] = None,
    accuracy: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, callback=refuse_nan, help="Published accuracy, which must be reproduced."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Output folder (default: results/imported/<dataset>)."),
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Convert a third-party checkpoint without running its code.

    Measures the network's accuracy, then writes the network in robust-ham's layout.
    To use the network in a config, write `source: FOLDER` with the folder that this command prints.
    """
    from robust_ham.config.files import parse_dataset, parse_network, parse_numbers

    spec, data = parse_network("--as", network), parse_dataset("--dataset", dataset)
    folder = out or Path("results") / "imported" / Path(data.name).name
    check_attacks_package()
    from robust_ham.data.datasets import Dataset
    from robust_ham.models.importing.convert import Request, import_checkpoint
    from robust_ham.runs.runner import choose_device

    request = Request(
        file,
        spec,
        key,
        parse_numbers("--mean", mean) if mean is not None else None,
        parse_numbers("--std", std) if std is not None else None,
        accuracy,
    )
    imported = import_checkpoint(
        request, Dataset(data, data_root), folder, choose_device(device), say
    )
    say(f"{imported.folder}: {'already there' if imported.already_there else 'done'}")
    say(f"in a config, under models: {imported.group}")
