"""Compile every kernel that a type needs for a GPU that is not there, and say what its PTX holds.

python -m tests.kernels.ptx [--fused] KIND,WEIGHTED,BF16,CAPABILITY … → one JSON object: case → kernel → counts
"""

import json
import re
import sys
from typing import Any

import torch
import triton
from gguf import GGMLQuantizationType as Type
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from toolkit.kernels.gpu import launch

POINTERS = {
    torch.float32: "*fp32", torch.uint8: "*u8", torch.int8: "*i8", torch.int16: "*i16", torch.int64: "*i64",
}  # fmt: skip


def signature(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def launched(kind: Type, weighted: bool, bf16: bool) -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Return the kernels that quantizing to a type launches, with their arguments' types and constants."""
    found = []

    def record(kernel: Any, count: int, per_program: int, *arguments: Any, **constants: Any) -> None:
        types = dict(zip(kernel.arg_names, map(signature, arguments), strict=False))
        found.append((kernel, types | dict.fromkeys(constants, "constexpr"), constants))

    launch._launch = record
    rows = torch.zeros((2, 512), dtype=torch.bfloat16 if bf16 else torch.float32)
    launch.quantize_rows(kind, rows, torch.ones(512) if weighted else None)
    return found


def counted(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, fused: bool) -> Any:
    source = ASTSource(kernel, signature=types, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    ptx = triton.compile(source, target=target, options={"enable_fp_fusion": fused}).asm["ptx"]
    return {
        "fused": len(re.findall(r"\bfma\.", ptx)),
        "flushed": ptx.count(".ftz"),
        "approximate": len(re.findall(r"\.(?:approx|full)\b", ptx)),
        "rounded": len(re.findall(r"\b(?:div|sqrt)\.rn\.f32", ptx)),
        "multiplied": len(re.findall(r"\bmul(?:\.rn)?\.f32", ptx)),
    }


def main() -> None:
    fused = "--fused" in sys.argv
    found = {}
    for case in sys.argv[2 if fused else 1 :]:
        kind, weighted, bf16, capability = case.split(",")
        found[case] = {
            kernel.fn.__name__: counted(kernel, types, constants, int(capability), fused)
            for kernel, types, constants in launched(Type[kind], weighted == "1", bf16 == "1")
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
