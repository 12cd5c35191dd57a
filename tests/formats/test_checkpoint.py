"""No bytes make the safetensors reader raise anything but a ToolkitError."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.damage import thorough
from tests.support.properties import tries
from toolkit.core.errors import ToolkitError
from toolkit.formats import safetensors_header


@thorough(60, 2000)
def test_any_bytes_as_safetensors(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "x.safetensors"
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers(-5, 2**66) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "BF16", "X", 3, None]) | json_values,
            "shape": st.lists(st.integers(-1, 2**40), max_size=3) | json_values,
            "data_offsets": st.lists(st.integers(-1, 20), max_size=3) | json_values,
        },
    )
    header = st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entry | json_values) | json_values
    texts = header.map(lambda values: json.dumps(values).encode()) | st.binary(max_size=40)

    @settings(max_examples=tries(examples), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(texts, st.integers(-3, 3), st.binary(max_size=16))
    def check(text: bytes, wrong: int, data: bytes) -> None:
        path.write_bytes(struct.pack("<q", max(0, len(text) + wrong)) + text + data)
        try:
            tensors = safetensors_header.read_header(path)
        except ToolkitError:
            return
        assert sum(tensor.size for tensor in tensors.values()) == len(data) - wrong

    check()


def test_deep_nesting_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    text = b"[" * 200_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ToolkitError, match="not JSON"):
        safetensors_header.read_header(path)
