"""What an export would do, before it does it: every tensor's type, sizes, memory, and an estimate of the time."""

import re
import time
from collections import Counter
from math import prod
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type

from toolkit.core import console, hardware
from toolkit.export import quantize
from toolkit.export.planning import ExportPlan

SAMPLE = 1 << 18  # weights that are quantized to see how fast this machine is
READ_RATE = 4e8  # weights per second that one core reads, merges and checks
WRITE_RATE = 5e8  # bytes per second that one core hashes and writes


def describe_export(planned: ExportPlan) -> dict[str, Any]:
    """Return the plan as plain values; takes a moment, because the machine's speed is measured."""
    return {
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "source": tensor.layout.source,
                "trained": tensor.replaced or tensor.change is not None,
                "types": {quantization: kind.name for quantization, kind in tensor.types.items()},
                "fallbacks": sorted(tensor.fallbacks),
            }
            for tensor in planned.tensors
        ],
        "bytes": planned.bytes,
        "parameters": planned.parameters,
        "memory_bytes": planned.memory,
        "seconds": round(seconds(planned), 1),
    }


def seconds(planned: ExportPlan) -> float:
    """Estimate the time from how fast this machine makes each type: all cores at work, the disk no bottleneck."""
    weights: Counter[Type] = Counter()
    for tensor in planned.tensors:
        for kind in set(tensor.types.values()):  # files with the same type share the work
            weights[kind] += prod(tensor.shape)
    busy = sum(count / rate(kind) for kind, count in weights.items())
    busy += planned.parameters / READ_RATE + sum(planned.bytes.values()) / WRITE_RATE
    return busy / hardware.cores()


def rate(kind: Type) -> float:
    """Measure how many weights per second one core converts to a type."""
    rows = np.random.default_rng(0).standard_normal((SAMPLE // 4096, 4096), np.float32)
    importance = np.ones(4096, np.float32) if kind.name.startswith("IQ") else None  # some cannot do without
    quantize.slab(rows[:1], kind, "sample", importance)  # loads the library and builds its tables
    started = time.perf_counter()
    quantize.slab(rows, kind, "sample", importance)
    return SAMPLE / max(time.perf_counter() - started, 1e-6)


def plan_table(described: dict[str, Any]) -> str:
    """Return the plan as a table, one line for each kind of tensor: layers are counted, not listed."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for tensor in described["tensors"]:
        name = re.sub(r"\.\d+\.", ".*.", tensor["name"])
        kinds.setdefault((name, " × ".join(map(str, tensor["shape"]))), []).append(tensor)
    names = list(described["bytes"])
    rows = []
    for (name, shape), members in kinds.items():
        trained = sum(member["trained"] for member in members)
        cells = [_types(Counter(member["types"][quantization] for member in members)) for quantization in names]
        rows.append((name, len(members), shape, trained or "-", *cells))
    total = ("total", len(described["tensors"]), "", "", *(console.size(described["bytes"][name]) for name in names))
    text = console.table(("tensor", "count", "shape", "trained", *names), [*rows, total])
    fallen = sum(bool(tensor["fallbacks"]) for tensor in described["tensors"])
    notes = [
        f"memory {console.size(described['memory_bytes'])} at most",
        f"about {console.duration(described['seconds'])} on {hardware.cores()} cores",
    ]
    if fallen:
        notes.append(f"{fallen} tensors fall back to another type, because their rows do not divide into its blocks")
    return f"{text}\n{', '.join(notes)}"


def _types(counted: Counter[str]) -> str:
    if len(counted) == 1:
        return next(iter(counted))
    return ", ".join(f"{kind} ×{count}" for kind, count in counted.most_common())
