"""The trained model as transformers and PEFT run it in float32: every GGUF is compared with it."""

import contextlib
import errno
import gc
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import console
from toolkit.core.console import silence_transformers
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.model.merge_base import OtherBase
from toolkit.prompt.format import Prompt
from toolkit.prompt.tokenizer import Tokenizer
from toolkit.validate.heldout import Record
from toolkit.validate.metrics import Distance, Logits, Values, compare, join, negative_log_likelihood
from toolkit.validate.swap_base import exchange

RESERVE = 256 * 2**20  # bytes of disk left free for the report and whatever else writes meanwhile


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
    """Results of the trained model: `logits` (answer tokens of all rows, vocabulary) in float32, on disk.

    `nll` and `base_nll` are the tokens' negative log-likelihoods in nats with the adapter and without it; `answers` are
    the untrained model's. `merge` is None if the adapter has one base only.
    """

    logits: Logits
    nll: Values
    base_nll: Values
    answers: list[str]
    device: str
    merge: MergeCost | None = None


@contextlib.contextmanager
def measured(
    base: Path,
    adapter: Path,
    records: list[Record],
    prompts: list[Prompt],
    tokens: int,
    stops: tuple[str, ...],
    tokenizer: Tokenizer,
    spill_folder: Path,
    other: OtherBase | None = None,
) -> Iterator[Reference]:
    """Run the trained model over the records and the untrained one over records and prompts, then free it.

    With `other` the adapter is scored on that base too; its weights replace the first one's in memory. The logits
    live in an unlinked file in `spill_folder` while the block runs. Raises ToolkitError if the adapter does
    not fit the base, the disk has no room, or a logit is not finite.
    """
    model, device = load_reference(base, adapter)
    with spill(spill_folder, sum(len(record.targets) for record in records), _width(model)) as logits:
        nll, base_nll = _score(model, device, records, logits)
        with model.disable_adapter():
            answers = [_answer(model, device, tokenizer, prompt, tokens, stops) for prompt in prompts]
        merge = _merge_cost(model, device, records, logits, other) if other else None
        del model
        release()
        yield Reference(logits, nll, base_nll, answers, device, merge)


def load_reference(base: Path, adapter: Path) -> tuple[Any, str]:
    """Load base and adapter in float32, on the GPU if they fit there; returns the PEFT model and its device."""
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    for name in ("adapter_config.json", "adapter_model.safetensors"):  # PEFT would take a pickled .bin instead
        if not (adapter / name).is_file():
            raise ToolkitError(
                f"the adapter folder `{adapter}` has no {name}",
                hint="run `toolkit train`, or copy a folder there that PEFT's save_pretrained wrote",
                exit_code=MISSING,
            )
    silence_transformers()
    torch.set_float32_matmul_precision("highest")  # no TF32: it would cost three digits
    device = _device(base)
    model = AutoModelForCausalLM.from_pretrained(
        base, use_safetensors=True, dtype=torch.float32, device_map={"": device} if device != "cpu" else None
    )
    try:
        model = PeftModel.from_pretrained(model, str(adapter), torch_device=device)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        reason = next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(exc).__name__)
        raise ToolkitError(
            f"the adapter in `{adapter}` does not fit the base in `{base}`: {reason}",
            hint="validate against the base that the adapter was trained on (`model.base`, `model.base_16bit`)",
        ) from None
    model.eval()
    return model, device


def release() -> None:
    """Return the memory of freed tensors to the system before llama.cpp loads its own."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device(base: Path) -> str:
    """Choose CUDA if the float32 weights fit into its free memory, with room for activations; else the CPU."""
    import torch
    from safetensors import safe_open

    if not torch.cuda.is_available():
        return "cpu"
    weights = 0
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            weights += sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    free, _ = torch.cuda.mem_get_info()
    return "cuda" if 1.15 * weights + 3 * 2**30 < free else "cpu"


def _width(model: Any) -> int:
    width: int = model.get_output_embeddings().weight.shape[0]
    return width


@contextlib.contextmanager
def spill(folder: Path, rows: int, width: int) -> Iterator[Logits]:
    """Yield a float32 array of shape (rows, width) in an unlinked file, which cannot be left behind.

    Its blocks are allocated at once, because a full disk under a memory map kills the process. Raises ToolkitError
    if there is no room.
    """
    need = rows * width * 4
    free = shutil.disk_usage(folder).free
    if need + RESERVE > free:
        raise _no_room(folder, rows, need, free)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, need)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise _no_room(folder, rows, need, shutil.disk_usage(folder).free) from None
            raise
        yield np.memmap(file, dtype=np.float32, mode="r+", shape=(rows, width))


def _no_room(folder: Path, rows: int, need: int, free: int) -> ToolkitError:
    return ToolkitError(
        f"the reference of {rows:,} answer tokens needs {console.size(need)} of disk in `{folder}` while validation "
        f"runs, but {console.size(free)} is free",
        hint="free some space, or score fewer rows with `--set validate.rows=10`",
    )


def _score(model: Any, device: str, records: list[Record], logits: Logits) -> tuple[Values, Values]:
    """Fill `logits` with the trained model's; return its NLL per answer token, and the untrained model's."""
    nll, base_nll = np.empty(len(logits)), np.empty(len(logits))
    position = 0
    with console.progress(
        f"reference (float32, {device})", sum(2 * len(record.seen) for record in records), "tokens"
    ) as bar:
        for record in records:
            rows = slice(position, position + len(record.targets))
            logits[rows] = _forward(model, device, record)
            nll[rows] = negative_log_likelihood(logits[rows], record.targets)
            bar.advance(len(record.seen))
            with model.disable_adapter():
                base_nll[rows] = negative_log_likelihood(_forward(model, device, record), record.targets)
            bar.advance(len(record.seen), f"row {record.row}")
            for who, values in (("trained", nll[rows]), ("untrained", base_nll[rows])):
                if not np.isfinite(values).all():
                    raise ToolkitError(
                        f"row {record.row}: the {who} model gives logits that are not finite",
                        hint="its weights hold NaN or infinity: train again with a lower `train.learning_rate`",
                    )
            position = rows.stop
    return nll, base_nll


def _merge_cost(model: Any, device: str, records: list[Record], logits: Logits, other: OtherBase) -> MergeCost:
    """Score the adapter on the other base and compare with `logits`, those of the base that is merged into."""
    try:
        exchange(model, other)
    except ToolkitError as exc:  # not part of the gate: a failure here is only reported
        console.warn(f"the cost of merging into a base other than the trained one is not measured: {exc.message}")
        return MergeCost(None, None, exc.message)
    parts, nll = [], []
    position = 0
    total = sum(len(record.seen) for record in records)
    with console.progress(f"the adapter on {other.label} (float32, {device})", total, "tokens") as bar:
        for record in records:
            merged = logits[position : position + len(record.targets)]
            position += len(record.targets)
            found = _forward(model, device, record)
            trained, instead = (merged, found) if other.merged_as_trained else (found, merged)
            parts.append(compare(trained, instead, record.targets))
            nll.append(negative_log_likelihood(trained, record.targets))
            bar.advance(len(record.seen), f"row {record.row}")
    distance = join(parts)
    if not np.isfinite(distance.kl).all():
        return MergeCost(None, None, f"the adapter on `{other.label}` gives logits that are not finite")
    return MergeCost(distance, np.concatenate(nll))


def _forward(model: Any, device: str, record: Record) -> Logits:
    """Return the logits that predict the answer, shape (answer tokens, vocabulary); the prompt's are not computed."""
    import torch

    count = len(record.targets)
    with torch.inference_mode():
        seen = torch.tensor([record.seen], device=device)
        found = model(input_ids=seen, use_cache=False, logits_to_keep=count).logits[0, -count:]
        array: Logits = found.float().cpu().numpy()
    return array


def _answer(model: Any, device: str, tokenizer: Tokenizer, prompt: Prompt, tokens: int, stops: tuple[str, ...]) -> str:
    """Answer greedily with at most `tokens` tokens, up to EOS or a stop string."""
    import torch
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=tokenizer.eos, pad_token_id=tokenizer.eos
    )
    # What a base ships with its weights (such as a repetition penalty) would fill in whatever is not set here.
    model.get_base_model().generation_config = greedy
    ids = tokenizer.prompt_ids(prompt)
    with torch.inference_mode():
        given = torch.tensor([ids], device=device)
        found = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), generation_config=greedy, use_cache=True
        )
    new = found[0, len(ids) :].tolist()
    text = tokenizer.decode(new[: new.index(tokenizer.eos)] if tokenizer.eos in new else new)
    cuts = [text.index(stop) for stop in stops if stop in text]
    return text[: min(cuts)] if cuts else text
