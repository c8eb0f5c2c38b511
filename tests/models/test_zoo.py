"""The shipped networks are what their cards say."""

import pytest
import torch

from robust_ham.config.experiment import DatasetConfig
from robust_ham.config.files import load_config
from robust_ham.data.datasets import load_split
from robust_ham.models import checkpoints
from robust_ham.models.checkpoints import ZOO, source_folder
from robust_ham.models.predict import accuracy, predictions
from robust_ham.storage.files import file_hash

CONFIG = load_config("quickstart")
SPECS = CONFIG.model_specs()


def test_the_quickstart_asks_for_all_of_the_zoo_and_the_zoo_config_makes_it():
    ids = {spec.model_id for spec in SPECS}
    assert len(ids) == 30
    assert ids == {path.name for path in (ZOO / "fashion_mnist").iterdir()}
    assert ids == {spec.model_id for spec in load_config("zoo_fashion_mnist").model_specs()}


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.model_id)
def test_weights_and_cards_belong_together(spec):
    folder = source_folder(CONFIG, spec)
    card = checkpoints.read_card(folder)
    assert file_hash(folder / checkpoints.WEIGHTS) == card["weights_sha256"]
    assert card["model"] == checkpoints.describe(spec)
    assert card["data"]["num_train"] == 60_000
    made_by = load_config("zoo_fashion_mnist")
    assert card["training"] == checkpoints.training_identity(made_by, spec)["training"]
    assert (folder / checkpoints.CURVE).read_text().count("\n") == made_by.training.epochs + 1


@pytest.mark.parametrize("window", ["none", "hamming"])
def test_recorded_accuracy_is_found_again(window):
    spec = next(s for s in SPECS if (s.kernel_size, s.window, s.seed) == (3, window, 1))
    model, card = checkpoints.load(source_folder(CONFIG, spec))
    test = load_split(DatasetConfig(name="fashion_mnist"), "test")
    found = accuracy(predictions(model, test, torch.device("cpu")))
    assert found == pytest.approx(card["test_accuracy"], abs=1e-3)
    assert card["test_sha256"] == test.hash()
