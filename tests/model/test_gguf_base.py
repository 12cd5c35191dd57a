"""A GGUF file of every family as a base: its conversion computes what the model computed that it was made of."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import families, models, tiny_gguf
from toolkit import llamacpp
from toolkit.core.errors import ToolkitError
from toolkit.export import export
from toolkit.formats.gguf_reader import open_gguf
from toolkit.model import base
from toolkit.model.gguf_base import folder_from_gguf
from toolkit.model.gguf_tokenizer import save_vocabulary
from toolkit.model.licence import licence_of
from toolkit.prompt.tokenizer import load_tokenizer

TEXTS = [
    "Take 500 mg at 8:30.",
    "na\u00efve \u2014 \u6c34 \U0001f642\r\n\r\n",
    " a  b\tc ",
    "x    y\n\n\n\u00bd",
    "</s> is text",
]
IDS = np.random.default_rng(0).integers(3, 480, 64).tolist()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def exported(folder: Path, name: str, **settings: Any) -> tuple[Path, Path]:
    """Return a small model of a family, and its GGUF file in F32."""
    made = families.save(folder / "base", name, **settings)
    export(made, None, {"F32": folder / "base.gguf"}, models.TEMPLATE, "small")
    return made, folder / "base.gguf"


def logits(folder: Path) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = models.load(folder, alone=True).eval()(torch.tensor([IDS])).logits[0].numpy()
    return found


FORMS = [*families.FAMILIES, *(name for name in families.VARIANTS if name not in families.THAT_SEE)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "qwen3" else pytest.mark.slow) for n in FORMS])
def test_the_gguf_of_every_family_is_a_base(name: str, tmp_path: Path) -> None:
    made, gguf = exported(tmp_path, name)
    found = folder_from_gguf(gguf)
    ours, theirs = logits(found), logits(made)
    rows = min(ours.shape[1], theirs.shape[1])
    np.testing.assert_allclose(ours[:, :rows], theirs[:, :rows], rtol=0, atol=2e-5)
    export(found, None, {"F32": tmp_path / "again.gguf"}, models.TEMPLATE, "small")
    first, second = open_gguf(gguf), open_gguf(tmp_path / "again.gguf")
    assert first.tensors.keys() == second.tensors.keys()
    with gguf.open("rb") as one, (tmp_path / "again.gguf").open("rb") as other:
        for key, tensor in first.tensors.items():
            one.seek(tensor.offset)
            other.seek(second.tensors[key].offset)
            assert one.read(tensor.size) == other.read(second.tensors[key].size), key
    tokenizer, former = load_tokenizer(found), load_tokenizer(made)
    assert (tokenizer.bos, tokenizer.eos_text) == (former.bos, former.eos_text)
    with llamacpp.opened(gguf, 128) as llm:
        for text in TEXTS:
            assert tokenizer.prompt_ids(text) == llamacpp.tokenize(llm, text), text
            assert tokenizer.prompt_ids(text) == former.prompt_ids(text), text


def state_licence(path: Path, licence: str) -> None:
    """Put a key into a GGUF file's header; it takes 64 bytes, so that everything behind it stays aligned."""
    raw, key, text = path.read_bytes(), b"general.license", licence.encode().ljust(29)
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(text)) + text
    assert len(pair) == 64
    (keys,) = struct.unpack("<Q", raw[16:24])
    path.write_bytes(raw[:16] + struct.pack("<Q", keys + 1) + pair + raw[24:])


@pytest.mark.parametrize("licence", ["gemma", "apache-2.0", ""])
def test_the_licence_in_a_header_is_said_and_kept(
    licence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, gguf = exported(tmp_path, "qwen3")
    if licence:
        state_licence(gguf, licence)
    found = base.resolve(str(gguf)).folder
    assert licence_of(found) == licence
    assert (f"(licence: {licence})" in capsys.readouterr().err) is bool(licence)


@pytest.mark.parametrize(
    ("name", "words"),
    [("mamba", "architecture mamba"), ("gemma4", "architecture gemma4"), ("mamba2", "architecture mamba2")],
)
def test_other_architectures_are_refused_by_name(name: str, words: str, tmp_path: Path) -> None:
    _, gguf = exported(tmp_path, "qwen3")
    path = tmp_path / "other.gguf"
    raw = gguf.read_bytes()
    length = len(b"qwen3").to_bytes(8, "little")
    path.write_bytes(raw.replace(length + b"qwen3", len(name).to_bytes(8, "little") + name.encode(), 1))
    with pytest.raises(ToolkitError, match=words):
        base.resolve(str(path))
    assert not list((tmp_path / "cache").rglob("config.json"))


@pytest.mark.parametrize("key", ["bos", "eos", "padding"])
@pytest.mark.parametrize("index", ["</s>", 1.5, [1], True, -1, 10**9])
def test_a_token_that_is_no_number_of_the_vocabulary_is_refused(key: str, index: object, tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf")
    metadata = {**open_gguf(path).metadata, f"tokenizer.ggml.{key}_token_id": index}
    with pytest.raises(ToolkitError, match=f"vocabulary.*cannot be read|`tokenizer.ggml.{key}_token_id` is "):
        save_vocabulary(metadata, path, tmp_path)
