"""What an importance matrix must hold for a quantization."""

from collections.abc import Mapping

import numpy as np
from gguf import GGMLQuantizationType as Type

from toolkit.core.errors import USAGE, ToolkitError
from toolkit.formats.checkpoint import Floats
from toolkit.model.tensor_types import is_matrix

# Names of tensors in GGUF → the mean square of each input (n_per_row values, float32); None is no importance matrix.
Importance = Mapping[str, Floats] | None

GARBAGE_WITHOUT_IMATRIX = (Type.IQ3_XXS, Type.IQ2_S, Type.IQ2_XS, Type.IQ2_XXS)


def check_importance(
    quantization: str,
    types: Mapping[str, tuple[Type, bool]],
    shapes: Mapping[str, tuple[int, ...]],
    imatrix: Importance,
) -> None:
    """Raise ToolkitError for an importance matrix of another model, and for a type that is garbage without one.

    ggml aborts the process where IQ2_XXS and IQ2_XS have none; llama.cpp lets the embedding and the head do without.
    """
    for name, (kind, _) in types.items():
        columns = shapes[name][-1]
        found = (imatrix or {}).get(name)
        if found is not None and (found.shape != (columns,) or not (np.isfinite(found) & (found >= 0)).all()):
            raise ToolkitError(
                f"the importance matrix has {found.shape} values for `{name}`, not {columns} finite ones of 0 or more",
                hint="it was computed from another model: compute it again",
            )
        head = name in ("token_embd.weight", "output.weight") and kind not in (Type.IQ2_XXS, Type.IQ2_XS)
        if kind in GARBAGE_WITHOUT_IMATRIX and not head and name not in (imatrix or {}):
            what = "but this one has no values for it" if imatrix else "but there is none"
            raise ToolkitError(
                f"{quantization} makes `{name}` {kind.name}, which needs an importance matrix, {what}",
                hint="set export.imatrix = true, or choose a type from Q2_K, IQ3_S or Q3_K_S upwards",
                exit_code=USAGE,
            )


def expected_importance(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Floats]:
    """Return an importance matrix of ones for the matrices that get one: those of the layers."""
    matrices = {name: shape for name, shape in shapes.items() if name.startswith("blk.") and is_matrix(name, shape)}
    return {name: np.broadcast_to(np.float32(1), shape[-1:]) for name, shape in matrices.items()}
