"""Training Llama-3.1-8B's shape with QLoRA on a CUDA GPU: the toolkit beside Unsloth's own trainer.

    python benchmarks/train.py [--baseline] [--beside CHECKOUT] [--base FOLDER] [--data CSV] [--only NAME ...]

Each run is a process of its own over the same prepared records of MedQuAD, with max_length 2048, rank 16 and the loss
on the whole text. --beside runs the toolkit of another checkout too, over the same records. Printed are real tokens
(no padding) per second after WARM_UP steps, the peak of the GPU's allocated memory, and model FLOP utilisation: 4 FLOP
per weight and token (forward, and backward to the activations; what checkpointing computes again does not count) over
what the GPU does in a large bf16 matrix product in the same run. Without a base folder the random-weight model of
`four_bit_model.py` is made first.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from training_ways import (
    ALPHA,
    BASELINES,
    BESIDE,
    BY_NAME,
    MAX_LENGTH,
    RANK,
    SAME_RECORDS,
    SEED,
    TARGETS,
    WARM_UP,
    WAYS,
    Measured,
    Way,
    steps_of,
)

REPOSITORY = Path(__file__).parents[1]
# Settings' names now, and in a checkout of before 27 November 2026.
FORMER = {
    "gradient_accumulation_steps": "accumulation", "max_steps": "steps", "optim =": "optimizer =",
    "completion_only_loss": "completion_only",
}  # fmt: skip


def write_settings(way: Way, base: Path, data: Path, folder: Path, steps: int) -> tuple[Path, str]:
    """Write the settings of a run of the toolkit, and return their file and the run's name."""
    settings = folder / "toolkit.toml"
    parts = [way.backend, way.batch * way.accumulation, way.optimizer, way.gpus, way.logging_steps, way.base_compute]
    name = "-".join(["run", *filter(None, map(str, parts))])
    text = (
        f'[run]\nname = "{name}"\nfolder = "{folder}"\n[data]\nsource = "{data}"\nval = 0.0\n'
        f'[model]\nbase = "{base}"\n[train]\nbackend = "{way.backend}"\nbatch_size = {way.batch}\n'
        f"gradient_accumulation_steps = {way.accumulation}\nmax_steps = {steps_of(way, steps)}\nsave_steps = 1000\n"
        f'optim = "{way.optimizer}"\n'
        f"completion_only_loss = false\n{f'logging_steps = {way.logging_steps}' if way.logging_steps > 1 else ''}\n"
        f"{f'base_compute = {chr(34)}{way.base_compute}{chr(34)}' if way.base_compute else ''}\n"
        "[validate]\nquestions = []\n"
    )
    if not way.checkout:  # train asks first if the export could be done; a base of random weights has no 16-bit twin
        text += '[export]\nmerge_base = "as-trained"\n'
    for now, former in FORMER.items() if way.checkout else ():
        text = text.replace(now, former)
    settings.write_text(text, encoding="utf-8")
    return settings, name


def by_toolkit(way: Way, base: Path, data: Path, folder: Path, steps: int) -> Measured:
    """Train with `toolkit train` on prepared records and read its log."""
    settings, name = write_settings(way, base, data, folder, steps)
    for verb in (["prepare"], ["train", "--gpus", str(way.gpus)]):
        command = [sys.executable, "-m", "toolkit", *verb, "-c", str(settings), "--json"]
        checkout = Path(way.checkout) if way.checkout else REPOSITORY
        done = subprocess.run(
            command, cwd=checkout, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(checkout)}
        )
        if done.returncode:
            raise SystemExit(done.stdout)
    lines = (folder / name / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [entry for entry in map(json.loads, lines) if "loss" in entry]
    seconds: list[float] = []
    counts: list[int] = []
    for before, after in itertools.pairwise([{"step": 0, "tokens": 0}, *entries]):  # an entry is of several steps
        steps, tokens = after["step"] - before["step"], after["tokens"] - before["tokens"]
        counts += [tokens // steps] * steps
        seconds += [tokens / after["tokens_per_second"] / steps] * steps
    return Measured(
        seconds=seconds,
        tokens=counts,
        losses=[entry["loss"] for entry in entries],
        norms=[entry["grad_norm"] for entry in entries],
        peak=max(entry.get("memory", 0) for entry in entries),
    )


def by_unsloth(way: Way, base: Path, data: Path, folder: Path, steps: int) -> Measured:
    """Train as the recipe does, with Unsloth and TRL's trainer, on the records that the toolkit prepared."""
    from unsloth import FastLanguageModel  # noqa: I001  (before transformers and trl, which it patches)
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from toolkit.core.input_settings import PromptSettings
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.renderings import prompt_text
    from toolkit.train import batches, varlen
    from toolkit.train.backend import dequantize

    if way.kernel:
        print("attention:", varlen.offer_to_unsloth(), file=sys.stderr)
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(base), max_seq_length=MAX_LENGTH, dtype=None, load_in_4bit=True, use_exact_model_name=True
    )
    if way.fp8:
        model = dequantize(model, torch.bfloat16)
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", target_modules=TARGETS, random_state=SEED,
        use_gradient_checkpointing="unsloth" if way.checkpointing else False,
    )  # fmt: skip
    if way.fp8:
        import unsloth_fp8

        print("layers in Unsloth's FP8:", unsloth_fp8.convert(model, way.fp8), file=sys.stderr)
    form = prompt_format(PromptSettings())
    records = map(json.loads, prepared(base, data, folder).read_text(encoding="utf-8").splitlines())
    texts = [prompt_text(form, one["input"], one["instruction"]) + one["output"] + "<|end_of_text|>" for one in records]
    if not way.packing:  # the same records in each step as the toolkit has
        per_step, count = way.batch * way.accumulation, len(texts)
        order = batches.step_records(count, per_step, steps_of(way, steps), SEED)
        texts = [texts[place] for place in order.reshape(-1)]
    seconds, losses, norms = [], [], []
    counts: list[Any] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Note when each step ends; nothing of it is left on the GPU by then."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            counts.append(0)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            now = time.perf_counter()
            seconds.append(now - self.ended)
            self.ended = now

        def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))
                norms.append(float(logs["grad_norm"]))

    class Counting(SFTTrainer):  # type: ignore[misc]
        """Count the tokens that are no padding."""

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            mask = inputs.get("attention_mask")
            counts[-1] = counts[-1] + (inputs["input_ids"].numel() if mask is None else mask.sum())
            return super().training_step(model, inputs, *rest, **named)

    trainer = Counting(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": texts}),
        callbacks=[Clock()],
        args=SFTConfig(
            output_dir=str(folder / "unsloth"), max_steps=steps_of(way, steps), per_device_train_batch_size=way.batch,
            gradient_accumulation_steps=way.accumulation, learning_rate=2e-4, warmup_steps=5, optim="adamw_8bit",
            weight_decay=0.01, lr_scheduler_type="linear", seed=SEED, bf16=True, packing=way.packing,
            max_length=MAX_LENGTH, dataset_text_field="text", logging_steps=1, save_strategy="no", report_to="none",
            disable_tqdm=True, dataset_num_proc=1,
            train_sampling_strategy="random" if way.packing else "sequential",
        ),
    )  # fmt: skip
    trainer.train()
    return Measured(seconds, [int(count) for count in counts], losses, norms, torch.cuda.max_memory_allocated())


def prepared(base: Path, data: Path, folder: Path) -> Path:
    """Return the training side as the toolkit prepares it from the CSV."""
    settings = folder / "data.toml"
    settings.write_text(
        f'[run]\nname = "data"\nfolder = "{folder}"\n[data]\nsource = "{data}"\nval = 0.0\n[model]\nbase = "{base}"\n',
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "toolkit", "prepare", "-c", str(settings)]
    subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    return folder / "data" / "data" / "train.jsonl"


def gpu_speed() -> tuple[str, float]:
    """Return the GPU's name and its FLOP/s in a bf16 product of 8192 × 8192 × 8192 random matrices."""
    import torch

    one, two = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        one @ two
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(10):
        one @ two
    end.record()
    torch.cuda.synchronize()
    return torch.cuda.get_device_name(), 10 * 2 * 8192**3 / (begin.elapsed_time(end) / 1e3)


def products(base: Path) -> int:
    """Return the weights that a token is multiplied with: the linear layers and the output matrix."""
    from toolkit.model.model_config import model_config

    shape = model_config(base)
    assert shape is not None
    return shape.linear_weights() + shape.table()


def curves(one: Measured, other: Measured, names: str) -> str:
    """Compare the losses of two ways step by step: both see the same records in each."""
    pairs = list(zip(one.losses, other.losses, strict=True))
    apart = [abs(first - second) for first, second in pairs]
    return (
        f"loss of {len(pairs)} steps over the same records, {names}: mean {statistics.mean(one.losses):.4f} "
        f"and {statistics.mean(other.losses):.4f}; in a step {statistics.mean(apart):.4f} apart on average, "
        f"{max(apart):.4f} at most; {sum(one.tokens):,} and {sum(other.tokens):,} tokens\n"
        + " ".join(f"{first:.3f}/{second:.3f}" for first, second in pairs)
    )


def main() -> None:
    """Run each way in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", action="store_true", help="run Unsloth's own trainer too")
    parser.add_argument("--beside", type=Path, help="a checkout whose toolkit runs too")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data/raw/medquad-2479.csv")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--only", nargs="+", choices=WAYS, help="these runs only")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    with tempfile.TemporaryDirectory() as name:
        folder, base, data = Path(name), arguments.base, arguments.data.resolve()
        ways = dict(WAYS)
        for key in BESIDE if arguments.beside else ():
            old = replace(WAYS[key], label=f"{WAYS[key].label}, of {arguments.beside.name}")
            ways[f"{key}-beside"] = replace(old, checkout=str(arguments.beside.resolve()), optimizer="adamw_8bit")
        if arguments.one:
            way = ways[arguments.one]
            try:
                measured = (by_toolkit if way.backend else by_unsloth)(way, base, data, folder, arguments.steps)
            except (Exception, SystemExit) as exc:  # the other ways go on
                traceback.print_exc()
                print(json.dumps({"failed": f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"}))
                return
            print(json.dumps(asdict(measured)))
            return
        gpu, flops = json.loads(child(["-c", "import train, json; print(json.dumps(train.gpu_speed()))"]))
        if base is None:
            base = folder / "base"
            child([str(Path(__file__).with_name("four_bit_model.py")), str(base)])
        print(f"{gpu}, {flops / 1e12:.0f} TFLOP/s in a bf16 matrix product; after {WARM_UP} steps", flush=True)
        print("| run | batch × accumulation | tokens a step | tokens/s | peak GiB | MFU | gradient norm |")
        print("|---|---|---|---|---|---|---|", flush=True)
        found: dict[str, Measured] = {}
        left_out = {
            *BY_NAME,
            *(key for key, way in WAYS.items() if way.gpus > 1),
            *(() if arguments.baseline else BASELINES),
        }
        wanted = arguments.only or [key for key in ways if key not in left_out]
        wanted += [key for key in ways if key not in WAYS and key not in wanted]
        common = ["--base", str(base), "--data", str(data), "--steps", str(arguments.steps)]
        common += ["--beside", str(arguments.beside)] if arguments.beside else []
        for key in wanted:
            way = ways[key]
            try:
                answer = json.loads(child([__file__, "--one", key, *common]))
            except subprocess.CalledProcessError as exc:
                answer = {"failed": f"exit code {exc.returncode}"}
            if "failed" in answer:
                print(f"| {way.label} | failed: {answer['failed']} |", flush=True)
                continue
            found[key] = one = Measured(**answer)
            speed = one.speed()
            print(
                f"| {way.label} | {way.batch} × {way.accumulation} "
                f"| {statistics.mean(one.tokens[WARM_UP:]):,.0f} | {speed:,.0f} | {one.peak / 2**30:.1f} "
                f"| {4 * products(base) * speed / flops / way.gpus:.0%} "
                f"| {min(one.norms):.2f} to {max(one.norms):.2f} |",
                flush=True,
            )
        first = next(iter(found), "")
        for key in list(found)[1:]:
            print(f"{ways[key].label}: {found[key].speed() / found[first].speed():.2f} × {ways[first].label}")
        for first, second in SAME_RECORDS:
            if {first, second} <= set(found):
                print(curves(found[first], found[second], f"{first} and {second}"))


def child(command: list[str]) -> str:
    """Run Python in a process of its own; return the last line of its standard output."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return (done.stdout.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    main()
