"""Names of attacks, metrics, windows and networks in figures and tables."""

from __future__ import annotations

from robust_ham.analysis.metrics import METRICS
from robust_ham.analysis.run import Run
from robust_ham.report.figures.style import WINDOW_STYLES


def attack_titles(run: Run) -> dict[str, str]:
    """Return each attack's name, with its id if two attacks share the name; "": clean images."""
    titles = {attack_id: _title(run, attack_id) for attack_id in run.attacks}
    shared = {title for title in titles.values() if list(titles.values()).count(title) > 1}
    return {"": "clean images"} | {
        attack_id: f"{title} ({attack_id})" if title in shared else title
        for attack_id, title in titles.items()
    }


def _title(run: Run, attack_id: str) -> str:
    return run.attacks[attack_id].label or attack_id


def metric_label(run: Run, attack_id: str, metric: str, budget: float | None = None) -> str:
    """Return a metric's axis label with its unit or budget (default: the attack's)."""
    return METRICS[metric].axis_label(run.attacks[attack_id] if attack_id else None, budget)


def window_label(window: str) -> str:
    """Return a window's name for figures and tables."""
    return WINDOW_STYLES[window].label


def size_label(size: int) -> str:
    """Return a kernel size for tables; "–": unknown."""
    return str(size) if size else "–"


def arm_label(window: str, family: str, families: list[str]) -> str:
    """Return an arm's name for legends and tables; ``families``: all families shown."""
    return window_label(window) + (f" ({family})" if len(families) > 1 else "")


def network_label(family: str, size: int) -> str:
    """Return a network's name: its family, and its kernel size if known."""
    return f"{family}, k = {size}" if size else family
