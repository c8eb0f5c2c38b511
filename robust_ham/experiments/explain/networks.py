"""The networks of an experiment: from the zoo or from a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from robust_ham.analysis.run import Run
from robust_ham.config.models import FactoryGroup, ModelGroup
from robust_ham.errors import RequestError
from robust_ham.models import checkpoints, factories
from robust_ham.models.checkpoints import ZOO, source_folder
from robust_ham.storage.run_folder import RunFolder

_ZOO = ZOO / "fashion_mnist"


@dataclass(frozen=True)
class Network:
    """A trained network: its configuration, and the folders of its card and weights."""

    spec: ModelGroup
    card: Path
    weights: Path

    def load(self) -> nn.Module:
        """Load the network in eval mode.

        Raises:
            RequestError: a file is missing, damaged, or does not match the card.
        """
        factory = self.spec.factory if isinstance(self.spec, FactoryGroup) else None
        if isinstance(self.spec, FactoryGroup) and self.weights == self.card:
            return factories.load_factory(self.spec)
        return checkpoints.load(self.weights, factory)[0]


def zoo_networks() -> list[Network]:
    """Return the zoo, by kernel size, window (baseline first) and seed."""
    zoo = []
    for folder in _ZOO.iterdir():
        if folder.is_dir():
            card = checkpoints.read_card(folder)
            zoo.append(Network(checkpoints.card_spec(card, folder), folder, folder))

    def order(network: Network) -> tuple[int, bool, str, int]:
        spec = network.spec
        return spec.kernel_size, spec.window != "none", spec.window, spec.seed

    return sorted(zoo, key=order)


def run_networks(folder: Path) -> list[Network]:
    """Return the networks of a run that have a card, in the order of its configuration.

    Raises:
        RequestError: not a run folder, or one without networks, or with a link, a pipe or a device.
    """
    run = Run(RunFolder(folder))
    run.folder.refuse_links()
    trained = []
    for spec in run.specs:
        card = run.folder.model(spec.model_id)
        trained.append(Network(spec, card, source_folder(run.config, spec) or card))
    if not trained:
        raise RequestError(f"{folder}: holds no trained network")
    return trained


def networks(run: Path | None) -> list[Network]:
    """Return the networks of a run, or of the zoo if ``run`` is None."""
    return zoo_networks() if run is None else run_networks(run)
