"""Jobs: the units of work of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robust_ham.config.experiment import Config
from robust_ham.config.models import ModelGroup
from robust_ham.storage.run_folder import RunFolder

Done = Literal["done", "already there"]
"""How a job that did not fail ended."""


@dataclass(frozen=True)
class Job:
    """Obtain one model, or run one attack on one model and one shard of the images."""

    spec: ModelGroup
    attack_id: str | None = None
    """None: obtain the model."""
    shard: int = 0
    num_shards: int = 1

    @property
    def name(self) -> str:
        """``model-id``, ``model-id/attack-id`` or, of several shards, ``…/2of4``."""
        if self.attack_id is None:
            return self.spec.model_id
        shard = f"/{self.shard + 1}of{self.num_shards}" if self.num_shards > 1 else ""
        return f"{self.spec.model_id}/{self.attack_id}{shard}"

    def result(self, run: RunFolder) -> Path:
        """Return the path of the job's result; shards of an attack share one."""
        if self.attack_id is None:
            return run.model(self.spec.model_id)
        return run.samples(self.spec.model_id, self.attack_id)

    @property
    def needs(self) -> list[str]:
        """Names of the jobs that must end first."""
        if self.attack_id is not None:
            return [self.spec.model_id]
        twins = self.spec.accuracy_twins() if self.spec.accuracy_of is not None else ()
        return [twin.model_id for twin in twins]


def list_jobs(config: Config, *, attack: bool = True) -> list[Job]:
    """List the jobs of a configuration: each model, followed by its attacks."""
    jobs = []
    specs = config.model_specs()
    for spec in sorted(specs, key=lambda spec: spec.accuracy_of is not None):  # after their twins
        jobs.append(Job(spec))
        for attack_id, attack_config in config.attacks.items() if attack else ():
            if attack_config.attacks(spec):
                num_shards = config.num_shards(attack_id)
                jobs += [Job(spec, attack_id, i, num_shards) for i in range(num_shards)]
    return jobs
