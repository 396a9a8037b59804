"""W&B's sweep files: the range in which a strategy is searched, and our command line as what an agent starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engrams.reports.wandb.settings import PROJECT


def sweep_of(
    protocol: str, strategy: str, ranges: Mapping[str, tuple[float, float]], out: str = "runs-sweep"
) -> dict[str, Any]:
    """Returns a sweep, for ``wandb sweep`` as YAML.

    Each trial is one run, which an agent starts as ``engrams run ... --set '{"ewc_lambda": 12.3}'``. Trials are judged
    on test data, which is right to look at and wrong to choose by: what is committed is chosen by ``engrams search``.

    Args:
        protocol: as our command line calls it.
        strategy: as our command line calls it.
        ranges: hyperparameter -> (lowest, highest), spread evenly over the logarithm.
        out: folder of the records.
    """
    return {
        "name": f"{protocol} {strategy}",
        "project": PROJECT,
        "method": "bayes",
        "metric": {"name": "final/ACC", "goal": "maximize"},
        "parameters": {
            name: {"distribution": "log_uniform_values", "min": float(low), "max": float(high)}
            for name, (low, high) in ranges.items()
        },
        "command": [
            "${env}",
            "engrams",
            "run",
            protocol,
            strategy,
            "--seeds",
            "1",
            "--out",
            out,
            "--set",
            "${args_json}",
        ],
    }
