"""The networks that an experiment looks at: those of the zoo, or those of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from robust_ham.analysis.run import Run
from robust_ham.config.models import FactoryGroup, ModelGroup
from robust_ham.errors import RequestError
from robust_ham.models import checkpoints
from robust_ham.models.checkpoints import ZOO, source_folder
from robust_ham.storage.run_folder import RunFolder

_ZOO = ZOO / "fashion_mnist"


@dataclass(frozen=True)
class Network:
    """A trained network: its description, and where its card is and its weights are."""

    spec: ModelGroup
    card: Path
    weights: Path

    def load(self) -> nn.Module:
        """The network in eval mode.

        Raises:
            RequestError: a file is missing, damaged, or not what the card says.
        """
        factory = self.spec.factory if isinstance(self.spec, FactoryGroup) else None
        if isinstance(self.spec, FactoryGroup) and self.weights == self.card:
            return checkpoints.load_factory(self.spec)
        return checkpoints.load(self.weights, factory)[0]


def zoo_networks() -> list[Network]:
    """The zoo, by kernel size, window (the baseline first) and seed."""
    found = []
    for folder in _ZOO.iterdir():
        if folder.is_dir():
            card = checkpoints.read_card(folder)
            found.append(Network(checkpoints.card_spec(card, folder), folder, folder))

    def place(network: Network) -> tuple[int, bool, str, int]:
        spec = network.spec
        return spec.kernel_size, spec.window != "none", spec.window, spec.seed

    return sorted(found, key=place)


def run_networks(folder: Path) -> list[Network]:
    """Those networks of a run that have a card, in the order of its configuration.

    Raises:
        RequestError: not a run folder, one without networks, or a link, a pipe or a device in it.
    """
    run = Run(RunFolder(folder))
    run.folder.refuse_links()
    found = []
    for spec in run.specs:
        card = run.folder.model(spec.model_id)
        found.append(Network(spec, card, source_folder(run.config, spec) or card))
    if not found:
        raise RequestError(f"{folder}: holds no trained network")
    return found


def networks(run: Path | None) -> list[Network]:
    """Those of a run, or, where none is named, of the zoo."""
    return zoo_networks() if run is None else run_networks(run)
