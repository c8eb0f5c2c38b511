"""How the processes of a run share its folder.

Every process holds a lock while it takes part. The first one tidies the folder and writes the key
of the run, which the others must match. The last one tidies it again.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Iterator

from robust_ham.errors import RequestError
from robust_ham.progress import Monitor
from robust_ham.regular_files import read_text
from robust_ham.runs.cleanup import set_aside_stale
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.keys import run_key
from robust_ham.runs.status import PROCESS, num_processes
from robust_ham.storage import signals
from robust_ham.storage.files import MAX_TEXT_BYTES, write_text
from robust_ham.storage.locks import locked, remove_dead, try_lock
from robust_ham.storage.output_folder import refuse_unusable, write_config
from robust_ham.training import distributed

_POLL_SECONDS = 0.2
_START = "start"
_STEP_LOCKS = re.compile(rf"({_START}|tables|timings|failures|(process|ray)-[0-9a-f]+)\.lock")
"""Names of all locks of a run except those of jobs."""


class SharedFolder:
    """The part of this process in a run whose folder several processes may share."""

    def __init__(self, context: Context, monitor: Monitor, *, keeps_config: bool) -> None:
        self.context = context
        self.monitor = monitor
        self.run = context.run
        self.keeps_config = keeps_config
        """``config.yaml`` of the folder is the file that the user runs: do not write it."""
        self.key = run_key(context)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Take part in the run inside the block.

        Raises:
            RequestError: other processes run another configuration, data, code or precision.
        """
        with contextlib.ExitStack() as starting:
            starting.enter_context(locked(self.run.lock(_START), signals.check))
            if not num_processes(self.run):
                self._begin()
            else:
                self._check_key()
            refuse_unusable(self.run)  # another user may have begun just now
            with locked(self.run.lock(f"{PROCESS}{secrets.token_hex(4)}")):
                if distributed.num_processes() == 1:  # under torchrun, no other process may join
                    starting.close()
                yield
        self._leave()

    def _begin(self) -> None:
        """Prepare the folder while no other process takes part."""
        self._tidy()
        self.run.failures.unlink(missing_ok=True)
        for line in set_aside_stale(self.context):
            self.monitor.note(f"{line}: recomputing it")
        if not self.keeps_config and (kept := write_config(self.run, self.context.plan.config)):
            self.monitor.note(f"{self.run.config}: was edited; the edited file is now {kept}")
        write_text(self.run.shared_key, self.key)

    def _check_key(self) -> None:
        if read_text(self.run.shared_key, MAX_TEXT_BYTES) != self.key:
            raise RequestError(
                f"{self.run.root}: another process is running in this folder with another "
                "configuration, or with other data, code or precision"
            )

    def _leave(self) -> None:
        """Tidy the folder if no other process takes part any more."""
        while (start := try_lock(self.run.lock(_START))) is None:
            if num_processes(self.run):  # the last of them tidies
                return
            time.sleep(_POLL_SECONDS)
        if not num_processes(self.run):
            self._tidy()
            self.run.shared_key.unlink(missing_ok=True)
        start.release()
        with contextlib.suppress(OSError):  # not empty: others take part
            self.run.locks.rmdir()

    def _tidy(self) -> None:
        """Remove what killed processes left behind."""
        self.run.remove_leftovers()
        remove_dead(self.run.locks, _STEP_LOCKS)
