"""Cells of a run on the machines of a Ray cluster; one whose worker dies is run again elsewhere."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robust_ham import stopping
from robust_ham.attack_cells import join_shards
from robust_ham.cell import Cell
from robust_ham.cells import Attempt, already_there
from robust_ham.context import Context
from robust_ham.executors import Executor, Ledger
from robust_ham.progress import Progress
from robust_ham.receipts import write_signed
from robust_ham.remote import Desk, Files, Job, run_there

_POLL_SECONDS = 0.5
_RETRIES = 3  # of a cell whose worker has died


def on_ray(
    data_root: Path | None,
    address: str | None = None,
    num_workers: int | None = None,
    gpus_per_cell: float | None = None,
) -> Executor:
    """An executor of at most ``num_workers`` cells at a time; None: as many as there is room for.

    A cell takes as many CPUs as ``evaluation.threads`` says and, on CUDA, one GPU or the share of
    it that ``gpus_per_cell`` says. ``address``: of a running cluster; None: this machine.
    """

    def execute(context: Context, ledger: Ledger) -> None:
        import ray

        with stopping.uninterrupted():  # Ray turns a signal that arrives inside it into an error
            if started := not ray.is_initialized():
                ray.init(address, logging_level="error", log_to_driver=False)
        token = context.run.lock(f"ray-{secrets.token_hex(8)}")
        try:
            token.touch()
            gpus = 0.0 if context.device.type == "cpu" else gpus_per_cell or 1.0
            job = Job.of(context, data_root, token.name)
            with stopping.uninterrupted():
                driver = _Driver(context, ledger, job, gpus)
            driver.run(num_workers)
        finally:
            token.unlink(missing_ok=True)
            if started:
                ray.shutdown()

    return execute


class _Driver:
    """Hands cells out, writes down how they end, and shows how far they are."""

    def __init__(self, context: Context, ledger: Ledger, job: Job, gpus: float) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.context, self.ledger, self.job, self.ray = context, ledger, job, ray
        cpus = context.plan.config.evaluation.threads
        self.remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)(_run_cell)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote(
            str(context.run.root.resolve())
        )
        self.at_work: dict[Any, Cell] = {}
        self.steps: dict[str, Progress] = {}
        self._tell_if_none_fits({"CPU": cpus, "GPU": gpus})

    def run(self, num_workers: int | None) -> None:
        """Until every cell has ended."""
        waiting = list(self.context.plan.cells)
        while waiting or self.at_work:
            with stopping.uninterrupted():
                waiting = [cell for cell in waiting if not self._taken(cell, num_workers)]
                waiting += self._ended()

    def _tell_if_none_fits(self, needed: dict[str, float]) -> None:
        """Say so if no machine of the cluster is large enough for a cell."""
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(node.get(k, 0) >= v for k, v in needed.items()) for node in alive):
            asked = " and ".join(f"{count:g} {name}" for name, count in needed.items() if count)
            self.ledger.monitor.note(f"no node of the cluster has {asked} for a cell: waiting")

    def _ended(self) -> Iterator[Cell]:
        """Note what has ended within half a second; yields cells that another process is at."""
        ended = self.ray.wait(list(self.at_work), timeout=_POLL_SECONDS)[0] if self.at_work else []
        self._show_progress()
        for reference in ended:
            cell = self.at_work.pop(reference)
            attempt = self._result(cell, reference)
            if attempt is None:
                time.sleep(_POLL_SECONDS)
                yield cell
            else:
                self.ledger.note(cell, attempt)

    def _taken(self, cell: Cell, num_workers: int | None) -> bool:
        """Whether a cell waits no more: handed out, or nothing is to be or can be done."""
        full = num_workers is not None and len(self.at_work) >= num_workers
        if full or not self.ledger.is_ready(cell):
            return False
        known = self.ledger.fails_with(cell) or already_there(self.context, cell)
        if known is not None:
            self.ledger.note(cell, known)
            return True
        self.at_work[self.remote.remote(self.job, cell, self.desk)] = cell
        return True

    def _result(self, cell: Cell, reference: Any) -> Attempt | None:  # noqa: ANN401
        try:
            attempt, files = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError as error:  # its worker died, again and again
            return Attempt(f"failed: {type(error).__name__}", 0.0, type(error).__name__)
        if files and (known := already_there(self.context, cell)):
            return known  # another process was quicker
        write_signed(self.context.run, files)
        if files and cell.attack_id is not None and cell.num_shards > 1:
            join_shards(self.context, cell, cell.attack_id)
        return attempt  # type: ignore[no-any-return]

    def _show_progress(self) -> None:
        for name, (done, total) in self.ray.get(self.desk.read_news.remote()).items():
            if name not in self.steps:
                self.steps[name] = self.ledger.monitor.cell_started(name)
            self.steps[name](done, total)


def _run_cell(job: Job, cell: Cell, desk: Any) -> tuple[Attempt | None, Files]:  # noqa: ANN401
    """On a worker: run one cell, and tell how far it is twice a second."""
    import ray

    told, models = 0.0, [*cell.needs, cell.spec.model_id]

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _POLL_SECONDS:
            told = time.monotonic()
            desk.write_news.remote(cell.name, done, total)

    return run_there(job, cell, lambda: ray.get(desk.models.remote(models)), progress)
