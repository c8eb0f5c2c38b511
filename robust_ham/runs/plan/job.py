"""What a run is divided into: obtaining one model, or one attack on one model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robust_ham.config.experiment import Config
from robust_ham.config.models import ModelGroup
from robust_ham.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Job:
    """The smallest unit of work: to obtain a model, or to attack one on one shard of the images."""

    spec: ModelGroup
    attack_id: str | None = None
    """None: the model is to be obtained."""
    shard: int = 0
    num_shards: int = 1

    @property
    def name(self) -> str:
        """``model-id``, ``model-id/attack-id``; of several shards: ``model-id/attack-id/2of4``."""
        if self.attack_id is None:
            return self.spec.model_id
        shard = f"/{self.shard + 1}of{self.num_shards}" if self.num_shards > 1 else ""
        return f"{self.spec.model_id}/{self.attack_id}{shard}"

    def result(self, run: RunFolder) -> Path:
        """What the job makes, or helps to make, in a run folder."""
        if self.attack_id is None:
            return run.model(self.spec.model_id)
        return run.samples(self.spec.model_id, self.attack_id)

    @property
    def needs(self) -> list[str]:
        """Names of the jobs that come first."""
        if self.attack_id is not None:
            return [self.spec.model_id]
        twins = self.spec.accuracy_twins() if self.spec.accuracy_of is not None else ()
        return [twin.model_id for twin in twins]


def list_jobs(config: Config, *, attack: bool = True) -> list[Job]:
    """The jobs of a configuration: each model, followed by its attacks."""
    jobs = []
    specs = config.model_specs()
    for spec in sorted(specs, key=lambda spec: spec.accuracy_of is not None):  # after their twins
        jobs.append(Job(spec))
        for attack_id, asked in config.attacks.items() if attack else ():
            if asked.attacks(spec):
                num_shards = config.num_shards(attack_id)
                jobs += [Job(spec, attack_id, i, num_shards) for i in range(num_shards)]
    return jobs
