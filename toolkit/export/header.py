"""The metadata of a GGUF file: what all quantizations of a model share, and what one of them adds."""

from pathlib import Path

from gguf import GGML_QUANT_VERSION, GGUFValueType, Keys, size_label

from toolkit.export.planning import ExportPlan
from toolkit.export.vocab import gguf_keys
from toolkit.formats import ggml_types, gguf_writer
from toolkit.formats.gguf_writer import Metadata


def shared_metadata(base: Path, adapter: Path | None, planned: ExportPlan, template: str, name: str) -> Metadata:
    """Return the key-value pairs that all quantizations share, in the converter's order.

    Raises ToolkitError for a tokenizer that llama.cpp would not treat alike (`gguf_keys`).
    """
    label = size_label(planned.parameters, planned.parameters, 0, 0)
    return {
        Keys.General.TYPE: ("model", GGUFValueType.STRING),
        Keys.General.NAME: (name, GGUFValueType.STRING),
        Keys.General.SIZE_LABEL: (label, GGUFValueType.STRING),
        **planned.family.metadata(planned.model),
        Keys.General.QUANTIZATION_VERSION: (GGML_QUANT_VERSION, GGUFValueType.UINT32),
        **gguf_keys.tokenizer_metadata(
            planned.vocabulary,
            planned.model.vocab,
            base,
            special_by_flag=planned.family.special_by_flag,
            adapter=adapter,
        ),
        Keys.Tokenizer.CHAT_TEMPLATE: (template, GGUFValueType.STRING),
    }


def header(planned: ExportPlan, common: Metadata, quantization: str) -> bytes:
    """Return the bytes of one quantization's file up to its first tensor."""
    number = int(ggml_types.BASE[quantization][1])
    metadata = {**common, Keys.General.FILE_TYPE: (number, GGUFValueType.UINT32)}
    tensors = [(tensor.name, tensor.shape, tensor.types[quantization]) for tensor in planned.tensors]
    return gguf_writer.header(planned.model.architecture, metadata, tensors)
