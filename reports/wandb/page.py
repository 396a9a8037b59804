"""What a page of W&B holds of a run: names and values, made of its record and of what it said while it ran.

``README.md`` beside this file lists the names. Nothing here needs wandb.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from engrams.reports.errors import without_paths
from engrams.reports.matrix import METRICS, seen_so_far
from engrams.reports.store import Generated, Record

EXPERIENCE, EPOCH = "experience", "epoch"
STEPS: dict[str, tuple[str, ...]] = {
    EXPERIENCE: (
        "accuracy/*",
        "ACC",
        "forgetting",
        "seconds",
        "class_shares/*",
        "frechet_distance",
        "generated",
        "generated_animation",
        "accuracy_matrix",
        "accuracy_matrix_image",
        "class_shares",
    ),
    EPOCH: ("loss/*",),
}
"""Step metric -> the names that are drawn against it."""
SO_FAR = ("ACC", "forgetting", "seconds")
"""Names of the history that the summary does not repeat: there, what is final is below ``final/``."""
JUDGED = {"frechet_by_class", "reverse_by_class", "precision", "recall", "privacy", "spread"}
"""What of a generator has no name of its own in the history or the summary."""
OF_FAILURE = ("reason", "traceback", "seconds_until_failure")
OWN = (
    "protocol",
    "strategy_name",
    "variant",
    "series",
    "seed",
    "upper_bound",
    "environment",
    "about",
    "experiences",
    "revisions",
)
"""Keys of the configuration that decide nothing, besides those of :meth:`Run.deciding`."""


def run_id(protocol: str, strategy: str, seed: int, deciding: Mapping[str, Any], variant: str = "") -> str:
    """Returns the same for the same run, so that a repeated run has one page."""
    identity = json.dumps([protocol, strategy, seed, deciding, *([variant] if variant else [])], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def introduction(record: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns what is known of a run before it begins.

    Args:
        record: the fields of its :class:`Record` that are known by then.
        about: title and sources of the protocol, version and commit of Engrams, the command.
    """
    protocol, strategy, variant, seed = (record.get(key, "") for key in ("protocol", "strategy", "variant", "seed"))
    series = " ".join(part for part in (protocol, strategy, variant) if part)
    deciding = record["hyperparameters"]
    scenario = deciding.get("scenario")
    tags = [protocol, f"{scenario}-incremental" if scenario else None, strategy]
    tags.append("Avalanche" if strategy.startswith("avalanche-") else "Engrams")
    tags.append("upper bound" if record.get("upper_bound") else None)
    tags.append("validation" if deciding.get("judge", "test") != "test" else None)
    return {
        "id": run_id(protocol, strategy, seed, deciding, variant),
        "group": protocol,
        "job_type": strategy,
        "name": f"{series} seed {seed}"[:128],
        "tags": [tag[:64] for tag in tags if tag],
        "config": {
            **deciding,
            "protocol": protocol,
            "strategy_name": strategy,
            "variant": variant,
            "series": series,
            "seed": seed,
            "upper_bound": bool(record.get("upper_bound")),
            "environment": record["environment"],
            "about": about or {},
            **{key: record[key] for key in ("experiences", "revisions") if record.get(key)},
        },
    }


def introduction_of(record: Record) -> dict[str, Any]:
    """As :func:`introduction`, from a record alone."""
    return introduction(record.model_dump())


def row(matrix: Sequence[Sequence[float]], whole_stream_at_once: bool, seconds: float | None = None) -> dict[str, Any]:
    """Returns the row of the history after an experience.

    Args:
        matrix: the accuracy matrix so far.
        whole_stream_at_once: its one row is the last of the stream; all of it has been seen.
        seconds: of training and evaluation so far.
    """
    last = matrix[-1]
    seen = {"ACC": sum(last) / len(last)} if whole_stream_at_once else seen_so_far(matrix)
    return {
        EXPERIENCE: len(last) - 1 if whole_stream_at_once else len(matrix) - 1,
        **{f"accuracy/exp_{index:02d}": accuracy for index, accuracy in enumerate(last)},
        **seen,
        **({"seconds": seconds} if seconds is not None else {}),
    }


def shares(of_experience: Sequence[float]) -> dict[str, float]:
    """Returns the share of every class among a generator's images after an experience."""
    return {f"class_shares/class_{label:02d}": share for label, share in enumerate(of_experience)}


def rows_of(record: Record) -> list[dict[str, Any]]:
    """Returns the rows of the history that a record has, one an experience; none where the run failed."""
    matrix = record.accuracy_matrix
    at_once = len(matrix) == 1 and len(matrix[0]) > 1
    rows = [row(matrix[: index + 1], at_once) for index in range(len(matrix))]
    if record.generated:
        for found, of_experience in zip(rows, record.generated.class_shares, strict=False):
            found |= shares(of_experience)
        for found, distance in zip(rows, record.generated.frechet_distance, strict=False):
            found["frechet_distance"] = distance
    return rows


def is_last(row_of_history: Mapping[str, Any]) -> bool:
    """Whether it is the row of the last experience: it has as many accuracies as experiences went before, and one."""
    judged = sum(name.startswith("accuracy/") for name in row_of_history)
    return row_of_history.get(EXPERIENCE) == judged - 1


def tables_of(record: Record) -> dict[str, tuple[list[str], list[list[float]]]]:
    """Returns name -> (columns, rows) of the tables of a complete record."""
    matrix = record.accuracy_matrix
    tables = {
        "accuracy_matrix": (
            ["trained_experience", *(f"exp_{index:02d}" for index in range(len(matrix[0])))],
            [[index, *accuracies] for index, accuracies in enumerate(matrix)],
        )
    }
    if record.generated and (found := record.generated.class_shares):
        tables["class_shares"] = (
            ["trained_experience", *(f"class_{label}" for label in range(len(found[0])))],
            [[index, *shares_then] for index, shares_then in enumerate(found)],
        )
    return tables


def summary_of(record: Record, traceback: str | None = None) -> dict[str, Any]:
    """Returns the summary: how the run ended and, only where it is complete, the final figures.

    Args:
        record: of the run.
        traceback: of a run that failed by an error.
    """
    summary: dict[str, Any] = {"status": record.status, "record_sha256": digest_of(record)}
    if not record.complete:
        summary["seconds_until_failure"] = record.seconds
        if record.reason:
            summary["reason"] = without_paths(record.reason)
        if traceback:
            summary["traceback"] = without_paths(traceback)
        return summary
    summary |= {f"final/{name}": value for name, value in record.metrics.items() if value is not None}
    summary |= {f"final/{name}": value for name, value in record.along_the_way.items()}
    summary["final/seconds"] = record.seconds
    if record.undefined:
        summary["undefined"] = record.undefined
    if record.costs:
        summary["costs"] = record.costs.model_dump()
    if record.accuracy_at_initialisation:
        summary["accuracy_at_initialisation"] = record.accuracy_at_initialisation
    if record.generated:
        summary["final/classifier_accuracy"] = record.generated.classifier_accuracy
        if record.generated.reverse_accuracy is not None:
            summary["final/reverse_accuracy"] = record.generated.reverse_accuracy
        if judged := record.generated.model_dump(include=JUDGED):
            summary["judged"] = judged
    return summary


def digest_of(record: Record) -> str:
    """Returns what tells two records of a run apart."""
    return hashlib.sha256(json.dumps(record.model_dump(), sort_keys=True).encode()).hexdigest()


def record_of(
    config: Mapping[str, Any], history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> Record | None:
    """Returns the record that a page was made of; None if the run has not ended.

    It has all but the curves along the way (``anytime``, ``prequential``), to the bit if it is complete.

    Args:
        config, history, summary: as the functions above made them.
    """
    if "status" not in summary:
        return None
    complete = summary["status"] == "complete"
    experiences = [found for found in history if EXPERIENCE in found and "ACC" in found]
    by_experience = {found[EXPERIENCE]: found for found in experiences}
    in_order = [by_experience[experience] for experience in sorted(by_experience)]
    generated = None
    if complete and "final/classifier_accuracy" in summary:
        generated = Generated(
            class_shares=[found for one in in_order if (found := numbered(one, "class_shares/class_"))],
            frechet_distance=[one["frechet_distance"] for one in in_order if "frechet_distance" in one],
            reverse_accuracy=summary.get("final/reverse_accuracy"),
            classifier_accuracy=summary["final/classifier_accuracy"],
            **summary.get("judged", {}),
        )
    return Record.model_validate(
        {
            "protocol": config["protocol"],
            "strategy": config["strategy_name"],
            "variant": config["variant"],
            "upper_bound": config["upper_bound"],
            "seed": config["seed"],
            "status": summary["status"],
            "reason": summary.get("reason"),
            "accuracy_matrix": [numbered(one, "accuracy/exp_") for one in in_order] if complete else [],
            "accuracy_at_initialisation": summary.get("accuracy_at_initialisation", []),
            "metrics": {name: summary.get(f"final/{name}") for name in METRICS} if complete else {},
            "generated": generated,
            "undefined": summary.get("undefined", {}),
            "costs": summary.get("costs") if complete else None,
            # W&B keeps no empty dictionary: that of a strategy that has nothing to set.
            "hyperparameters": {"strategy": {}}
            | {key: value for key, value in config.items() if key not in OWN and key != "_wandb"},
            "seconds": summary["final/seconds"] if complete else summary["seconds_until_failure"],
            "environment": config["environment"],
            "experiences": config.get("experiences") if complete else None,
            "revisions": config.get("revisions", {}),
        }
    )


def numbered(one: Mapping[str, Any], prefix: str) -> list[float]:
    """Returns a row's values whose names begin with ``prefix``, by the numbers that they end with: 11 before 100."""
    names = (name for name in one if name.startswith(prefix))
    return [one[name] for name in sorted(names, key=lambda name: int(name.rpartition("_")[2]))]
