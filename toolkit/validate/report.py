"""The report: every figure of a validation as plain values, its verdicts, and the table for the screen."""

from platform import python_version
from typing import Any

import numpy as np

from toolkit import __version__
from toolkit.core import console
from toolkit.core.learned import compare_losses, warning_of
from toolkit.core.manifest import FileRecord, StageRecord, installed
from toolkit.model.merge_base import OtherBase
from toolkit.prompt.held_out import Record
from toolkit.report.words import merge_sentence, nats, penalty_sentence, percent
from toolkit.validate.gguf import Measurement
from toolkit.validate.metrics import Distance, Values, kl_histogram, mean_interval, perplexity
from toolkit.validate.reference import MergeCost

FEW = 30  # rows below which the upper end of the mean's interval is held against the bound
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy", "llama-cpp-python")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries on both sides of the comparison."""
    return {"toolkit": __version__, "python": python_version(), **installed(LIBRARIES)}


def quantization_entry(
    name: str, file: FileRecord, found: Measurement, bound: float, scored: list[Record]
) -> dict[str, Any]:
    """Turn one file's measurement on the scored records into its entry of report.json, verdict included.

    Of fewer than 30 rows the upper end of the interval counts: their mean may be low by chance.
    """
    interval = _interval(found.distance, scored)
    entry: dict[str, Any] = {
        "file": file.path,
        "bytes": file.size,
        "sha256": file.sha256,
        "bits_per_weight": round(found.bits_per_weight, 3),
        **_distances(found.distance),
        "mean_kl_low": interval[0] if interval else None,
        "mean_kl_high": interval[1] if interval else None,
        "kl_counts": kl_histogram(found.distance.kl) if found.distance and _is_finite(found.distance) else None,
        "bound": bound,
        "prompts": found.parity.prompts,
        "unequal_prompts": found.parity.unequal_prompts,
        "unequal_records": found.parity.unequal_records,
        "unequal_examples": found.parity.examples,
    }
    entry["problems"] = _problems(entry, found, len(scored))
    entry["passed"] = not entry["problems"]
    return entry


def merge_entry(other: OtherBase | None, cost: MergeCost | None) -> dict[str, Any] | None:
    """Turn the cost of the merge base into its entry of report.json; None if there is no choice."""
    if other is None or cost is None:
        return None
    return {
        "trained_on": other.trained_on,
        "instead": other.instead,
        "merged_as_trained": other.merged_as_trained,
        **_distances(cost.distance),
        "trained_perplexity": None if cost.trained_nll is None else perplexity(cost.trained_nll),
        "problem": cost.problem,
    }


def penalty_entry(quantization: str, penalty: float, found: Measurement) -> dict[str, Any] | None:
    """Turn the effect of a repeat penalty on the served model into its entry of report.json; None without one."""
    if penalty == 1:
        return None
    plain = _distances(found.distance)
    return {
        "repeat_penalty": penalty,
        "quantization": quantization,
        **_distances(found.penalised),
        "plain_kl": plain["mean_kl"],
        "plain_perplexity": plain["perplexity"],
    }


def learned_entry(
    scored: list[Record], base_nll: Values, nll: Values, record: StageRecord | None
) -> tuple[dict[str, Any], list[str]]:
    """Compare the trained model's loss with the base's; return the entry of report.json and what is wrong.

    `base_nll` and `nll` are those of the scored records' tokens, `record` is training's. Training's result on its own
    held-out records counts, because there are more of them. So here only a loss that rose counts against a model that
    is better there.
    """
    cuts = np.cumsum([len(one.targets) for one in scored])[:-1]
    parts = [[(float(one.sum()), len(one)) for one in np.split(values, cuts)] for values in (base_nll, nll)]
    here = compare_losses(*parts)
    trained = record.figures.get("learned") if record else None
    warnings = [record.warning] if record and record.warning else []
    rate = record.settings.get("train.learning_rate") if record else None
    sure = trained is None or trained["verdict"] != "better" or (here is not None and here.verdict == "worse")
    said = warning_of(here, f"{len(scored):,} test records", rate) if sure else ""
    return {"train": trained, "test": here.figures if here else None}, warnings + [said] * bool(said)


def _distances(distance: Distance | None) -> dict[str, float | None]:
    names = ("mean_kl", "kl_99", "max_kl", "top1", "perplexity")
    if distance is None or not _is_finite(distance):
        return dict.fromkeys(names)
    kl = distance.kl
    values = (kl.mean(), np.percentile(kl, 99), kl.max(), distance.same_top.mean(), perplexity(distance.nll))
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _is_finite(distance: Distance) -> bool:
    return bool(np.isfinite(distance.kl).all() and np.isfinite(distance.nll).all())


def _interval(distance: Distance | None, scored: list[Record]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean KL over the scored records, None if there is none."""
    if distance is None:
        return None
    counts = np.array([len(record.targets) for record in scored])
    totals = np.array([part.sum() for part in np.split(distance.kl, np.cumsum(counts)[:-1])])
    return mean_interval(totals, counts)


def _problems(entry: dict[str, Any], found: Measurement, rows: int) -> list[str]:
    problems = []
    mean, high = entry["mean_kl"], entry["mean_kl_high"]
    few = f" (up to {high:.3g}, which counts with {rows} rows)" if high is not None and rows < FEW else ""
    if found.distance is not None and entry["mean_kl"] is None:
        count = int((~np.isfinite(found.distance.kl)).sum())
        problems.append(f"its logits are not finite at {count:,} of {len(found.distance.kl):,} answer tokens")
    elif mean is not None and (high if few else mean) > entry["bound"]:
        problems.append(f"mean KL {mean:.3g}{few} is over its bound {entry['bound']:g} (`validate.max_kl`)")
    for what in ("prompts", "records"):
        if entry[f"unequal_{what}"]:
            problems.append(
                f"{entry[f'unequal_{what}']:,} of {entry['prompts']:,} {what} have token ids that differ from training"
            )
    return problems + found.parity.differences


def row_entries(scored: list[Record], found: Measurement) -> list[dict[str, Any]]:
    """List the scored rows with their number of answer tokens and their mean KL (None if it was not measured)."""
    entries = []
    position = 0
    for record in scored:
        end = position + len(record.targets)
        kl = found.distance.kl[position:end].mean() if found.distance is not None else np.nan
        value = float(kl) if np.isfinite(kl) else None
        entries.append({"row": record.row, "tokens": end - position, "kl": value})
        position = end
    return entries


def report_table(report: dict[str, Any]) -> str:
    """Format a report's quantizations, and the cost of the merge base, for the screen; distances in nats."""
    rows = [
        (
            name,
            console.size(entry["bytes"]),
            nats(entry["mean_kl"]),
            nats(entry["kl_99"]),
            percent(entry["top1"]),
            "-" if entry["perplexity"] is None else f"{entry['perplexity']:.3f}",
            f"{entry['bound']:g}",
            "passed" if entry["passed"] else "FAILED",
        )
        for name, entry in report["quantizations"].items()
    ]
    columns = ("quantization", "size", "mean KL", "99 % KL", "top-1", "perplexity", "bound", "verdict")
    text = console.table(columns, rows)
    said = [interval_sentence(report["quantizations"], report.get("rows_scored") or report["held_out"]["rows_scored"])]
    said = [line for line in said if line]
    said += [merge_sentence(report["merge"])] if report.get("merge") else []
    said += [penalty_sentence(report["penalty"])] if report.get("penalty") else []
    return "\n".join([text, *said])


def interval_sentence(entries: dict[str, dict[str, Any]], rows: int) -> str:
    """State the 95 % interval of each mean KL, and whether its upper end decided; empty where nothing was measured."""
    if rows == 1 and any(entry["mean_kl"] is not None for entry in entries.values()):
        return (
            "one row has no 95 % interval: its mean alone is compared with the bound, and another row may differ much"
        )
    ends = {name: (entry.get("mean_kl_low"), entry.get("mean_kl_high")) for name, entry in entries.items()}
    listed = [f"{name} {nats(low)} to {nats(high)}" for name, (low, high) in ends.items() if low is not None]
    if not listed:
        return ""
    counts = f"; with fewer than {FEW} rows its upper end is compared with the bound" if rows < FEW else ""
    return f"95 % interval of the mean KL, over {rows:,} rows: {', '.join(listed)}{counts}"
