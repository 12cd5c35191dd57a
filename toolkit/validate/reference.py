"""The trained model as transformers and PEFT run it in float32: every GGUF is compared with it."""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.model.merge_base import OtherBase
from toolkit.prompt.held_out import Record
from toolkit.validate.filling import check_weights
from toolkit.validate.layers import BOTH, Trained, chunk_size, final_states, head, logits_of, spans_of, with_adapter
from toolkit.validate.metrics import Distance, Logits, Values, compare, join, negative_log_likelihood
from toolkit.validate.recomputed import Recomputed
from toolkit.validate.skeleton import Skeleton
from toolkit.validate.weights import other_weights


@dataclass(frozen=True)
class MergeCost:
    """The effect of the merge base: `distance` of the adapter on another base from the model as trained.

    `distance.nll` is that of the other base, `trained_nll` that of the model as trained. If they could not be measured,
    both are None and `problem` says why.
    """

    distance: Distance | None
    trained_nll: Values | None
    problem: str = ""


@dataclass(frozen=True)
class Reference:
    """Results of the trained model: `logits` (answer tokens of all rows, vocabulary), computed when asked for.

    `nll` and `base_nll` are the tokens' negative log-likelihoods in nats with the adapter and without it. `merge` is
    None if the adapter has one base only.
    """

    logits: Recomputed
    nll: Values
    base_nll: Values
    device: str
    merge: MergeCost | None = None


@contextlib.contextmanager
def measured(
    trained: Trained, records: list[Record], spill_folder: Path, other: OtherBase | None = None
) -> Iterator[Reference]:
    """Run the trained and the untrained model over the records.

    With `other` the adapter is scored on that base too. The last layer's states live in an unlinked file in
    `spill_folder` while the block runs. Raises ToolkitError if the disk has no room, or a logit is not finite.
    """
    skeleton = trained.skeleton
    label = f"reference (float32, {skeleton.device})"
    with final_states(trained, records, BOTH, spill_folder, label) as states:
        nll, base_nll = _score(trained, records, states, label)
        logits = Recomputed(trained, states[0], _answer_positions(records))
        merge = _merge_cost(skeleton, records, logits, other, spill_folder) if other else None
        release()
        yield Reference(logits, nll, base_nll, skeleton.device, merge)


def release() -> None:
    """Return the memory of freed tensors to the system before llama.cpp loads its own."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _answer_positions(records: Sequence[Record]) -> npt.NDArray[np.int64]:
    """Number the tokens that predict the answers, among all tokens of all records."""
    spans = spans_of([len(record.seen) for record in records])
    return np.concatenate(
        [np.arange(span.start + record.first, span.stop) for record, span in zip(records, spans, strict=True)]
    )


def _chunks(skeleton: Skeleton, count: int) -> list[slice]:
    step = chunk_size(skeleton)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _score(trained: Trained, records: list[Record], states: list[Logits], label: str) -> tuple[Values, Values]:
    """Return the trained model's NLL per answer token, and the untrained model's, from their states."""
    skeleton = trained.skeleton
    targets = np.concatenate([record.targets for record in records])
    nll, base_nll = np.empty(len(targets)), np.empty(len(targets))
    positions, chunks = _answer_positions(records), _chunks(skeleton, len(targets))
    with head(trained), console.progress(f"{label}, logits", 2 * len(targets), "tokens") as bar:
        for adapted, found, values in zip(BOTH, states, (nll, base_nll), strict=True):
            with with_adapter(skeleton, adapted):
                for rows in chunks:
                    some = logits_of(skeleton, found[positions[rows]])
                    values[rows] = negative_log_likelihood(some, targets[rows])
                    bar.advance(len(some))
    rows_of = np.repeat([record.row for record in records], [len(record.targets) for record in records])
    for who, values in (("trained", nll), ("untrained", base_nll)):
        if not np.isfinite(values).all():
            raise ToolkitError(
                f"row {rows_of[~np.isfinite(values)][0]}: the {who} model gives logits that are not finite",
                hint="its weights hold NaN or infinity: train again with a lower `train.learning_rate`",
            )
    return nll, base_nll


def _merge_cost(
    skeleton: Skeleton, records: list[Record], logits: Recomputed, other: OtherBase, folder: Path
) -> MergeCost:
    """Score the adapter on the other base and compare with `logits`, those of the base that is merged into."""
    try:
        return _on_other_base(skeleton, records, logits, other, folder)
    except ToolkitError as exc:  # not part of the gate: a failure here is only reported
        console.warn(f"the cost of merging into a base other than the trained one is not measured: {exc.message}")
        return MergeCost(None, None, exc.message)


def _on_other_base(
    skeleton: Skeleton, records: list[Record], logits: Recomputed, other: OtherBase, folder: Path
) -> MergeCost:
    trained = Trained(skeleton, other_weights(other))
    check_weights(skeleton, trained.weights)
    targets, positions = np.concatenate([record.targets for record in records]), _answer_positions(records)
    compared, nll = [], []
    label = f"the adapter on {other.label} (float32, {skeleton.device})"
    with final_states(trained, records, (True,), folder, label) as [states]:
        for rows in _chunks(skeleton, len(logits)):
            merged = logits[rows]
            with head(trained):  # one head at a time is in the model
                found = logits_of(skeleton, states[positions[rows]])
            as_trained, instead = (merged, found) if other.merged_as_trained else (found, merged)
            compared.append(compare(as_trained, instead, targets[rows]))
            nll.append(negative_log_likelihood(as_trained, targets[rows]))
    distance = join(compared)
    if not np.isfinite(distance.kl).all():
        return MergeCost(None, None, f"the adapter on `{other.label}` gives logits that are not finite")
    return MergeCost(distance, np.concatenate(nll))
