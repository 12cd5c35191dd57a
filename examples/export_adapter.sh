#!/usr/bin/env bash
# Make a merged Q8_0 and Q4_K_M from an adapter that was trained elsewhere, with a Modelfile next to them.
#
#   bash examples/export_adapter.sh ADAPTER BASE OUTPUT
#
# ADAPTER is a folder of PEFT, Unsloth, LLaMA-Factory, axolotl or MLX; BASE a folder, a GGUF file or a hub id.
set -euo pipefail
[ $# -eq 3 ] || { echo "usage: bash $0 ADAPTER BASE OUTPUT" >&2; exit 2; }
adapter=$1 base=$2 output=$3

# First show what would be written, its size, and the memory that it takes.
toolkit export --adapter "$adapter" --base "$base" --quant Q8_0 --quant Q4_K_M --output "$output" --dry-run
toolkit export --adapter "$adapter" --base "$base" --quant Q8_0 --quant Q4_K_M --output "$output"

echo "in Ollama: ollama create my-model -f '$output/Modelfile'"
