"""What an operator would look at first, read from the daemon's /metrics."""

from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

Samples = dict[tuple[str, str], float]
"""(name, value of its label or "") -> value"""


def metrics_table(address: str) -> Table:
    """Return the metrics that matter, as they are now."""
    found = _scrape(address)
    table = Table("what", "now", title=f"http://{address}/metrics", title_justify="left", title_style="bold")
    table.columns[1].justify = "right"
    for what, value in {
        "checkpoints merged / rejected / waiting": " / ".join(
            f"{found[key]:.0f}"
            for key in (
                ("foldin_submission_outcomes_total", "merged"),
                ("foldin_submission_outcomes_total", "rejected"),
                ("foldin_queue_length", ""),
            )
        ),
        "newest version, and its lambda": f"v{found['foldin_version', '']:.0f}, {found['foldin_lambda', '']:.3f}",
        "of the last update, kept by projection (median)": f"{found['foldin_projection_kept_ratio', 'median']:.0%}",
        "directions taken in a tensor (median)": f"{found['foldin_split_rank', 'median']:.0f}",
        "mean seconds of a merge: fold / publish / commit": " / ".join(
            f"{found['foldin_merge_stage_seconds_sum', stage] / found['foldin_merge_stage_seconds_count', stage]:.2f}"
            for stage in ("fold", "publish", "commit")
        ),
        "received / sent": " / ".join(
            _megabytes(sum(value for (name, _), value in found.items() if name == f"foldin_{way}_bytes_total"))
            for way in ("received", "sent")
        ),
        "state on disk": _megabytes(sum(value for (name, _), value in found.items() if name == "foldin_state_bytes")),
        "memory of the daemon / of the worker at its peak": " / ".join(
            _megabytes(found[name, ""])
            for name in ("process_resident_memory_bytes", "foldin_worker_peak_resident_bytes")
        ),
    }.items():
        table.add_row(what, value)
    return table


def _scrape(address: str) -> Samples:
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in families
        for sample in family.samples
    }


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.1f} MB"
