"""``robust-ham doctor``: versions, device and data sets."""

from __future__ import annotations

from robust_ham.cli.options import DataRoot, Debug
from robust_ham.cli.output import say
from robust_ham.cli.preparation import check_attacks_package


def doctor(data_root: DataRoot = None, debug: Debug = False) -> int:
    """Show versions, device and data sets, and how to get missing ones."""
    check_attacks_package()
    import torch

    from robust_ham.config.datasets import DATASETS
    from robust_ham.data.datasets import available
    from robust_ham.runs.manifest import versions
    from robust_ham.training.train import resolve_precision

    for name, version in versions().items():
        say(f"{name:<14}{version}")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    say(f"{'device':<14}{torch.cuda.get_device_name() if cuda else 'cpu (no CUDA device)'}")
    say(f"{'threads':<14}{torch.get_num_threads()}")
    say(f"{'precision':<14}{resolve_precision('auto', device)} for training, float32 for attacks")
    say("data sets")
    for name, facts in DATASETS.items():
        hint = f"not found; to get it: --data-root FOLDER, or {facts.how_to_get}"
        say(f"  {name:<14}{available(name, data_root) or hint}")
    return 0
