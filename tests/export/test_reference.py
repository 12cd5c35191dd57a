"""For every family and type, each tensor and each metadata key is what llama.cpp's converter and quantizer make."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.support import families, gguf_bytes, models, oracle, vocabularies
from tests.support.families import WIDTHS
from toolkit.core.errors import ToolkitError
from toolkit.core.output_settings import QUANTIZATIONS, TENSOR_TYPES
from toolkit.export import export, plan
from toolkit.formats.ggml_types import BASE, KNOWN

# Every difference between our files and the reference path's that is intended: key, or its start → why it differs.
INTENDED = {
    "granite.ssm.": "never stated: these sizes are of Mamba layers, and Granite 4.0 micro has none",
    "qwen35.attention.recurrent_layers": "the converter of llama.cpp in 0.3.36 states it, the one on PyPI is older",
    "general.name": "the run's name, not the folder's",
    "tokenizer.chat_template": "the template that the model was trained with",
    "tokenizer.ggml.add_bos_token": "always stated, as training added it or not",
    "tokenizer.ggml.add_eos_token": "always stated as false: a prompt never ends with EOS",
    "tokenizer.ggml.add_sep_token": "never stated: these models have no separator",
    "tokenizer.ggml.add_space_prefix": "always stated for SentencePiece, as tokenizer.json has it; no effect elsewhere",
}
DEPEND_ON_IMATRIX = ("IQ3_M", "IQ4_XS", "Q4_0", "Q5_K_M", "Q2_K")
COVERING = ("F16", "Q4_0", "Q4_K_M", "Q2_K", "IQ4_XS", "IQ2_XXS")
NEED_IMATRIX = ("IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS")
LLAMA32 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 256}  # fmt: skip
REAL: dict[str, tuple[str, dict[str, Any], Any]] = {
    "Mistral 7B v0.3": ("mistral", {"vocab_size": 32768}, vocabularies.mistral_v3),
    "Llama-3": ("llama", {"vocab_size": 128256}, vocabularies.llama3),
    "Llama-3.2": (
        "llama",
        {"vocab_size": 128256, "tie_word_embeddings": True, "rope_parameters": LLAMA32},
        vocabularies.llama32,
    ),
    "R1-Distill-Llama": (
        "llama",
        {"vocab_size": 128256},
        lambda path: vocabularies.r1_distill(path, "PreTrainedTokenizerFast"),
    ),
    "Mistral-Nemo": ("nemo", {"vocab_size": 131072}, vocabularies.tekken),
    "SmolLM2": ("llama", {"vocab_size": 49152}, vocabularies.smollm2),
}
Pair = tuple[Path, Path]


def differences(base: Path, reference: Path, target: Path, quantization: str, **settings: Any) -> list[str]:
    """Export a base and name all that is not as in the reference file, but for what is intended."""
    export(base, None, {quantization: target}, models.TEMPLATE, "small", **settings)
    found = gguf_bytes.unlike(gguf_bytes.read(target), gguf_bytes.read(reference))
    return [f"{quantization} {name}: {how}" for name, how in found.items() if not name.startswith(tuple(INTENDED))]


def importance(path: Path) -> dict[str, np.ndarray]:
    """Return an importance matrix of random values for all matrices of the layers, as imatrix files have it."""
    chance = np.random.default_rng(0)
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            found[tensor.name] = chance.gamma(0.5, size=int(tensor.shape[0])).astype(np.float32)
    return found


def chosen_values(request: pytest.FixtureRequest) -> set[str]:
    """Return the names that this call's tests of the module are parametrized with: `-k` leaves few."""
    calls = (getattr(item, "callspec", None) for item in request.session.items if item.path == request.path)
    return {value for call in calls if call for value in call.params.values() if isinstance(value, str)}


@pytest.fixture(scope="module")
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """A small model of every family that is asked for, and what the converter makes of it."""
    folder, chosen = tmp_path_factory.mktemp("families"), {*chosen_values(request), "llama"}
    names = [name for name in (*families.FAMILIES, *families.VARIANTS) if name in chosen]
    bases = {name: families.save(folder / name, name) for name in names}
    if "bfloat16" in chosen:
        bases["bfloat16"] = families.save(folder / "bfloat16", "gemma2", dtype=torch.bfloat16)
    if "su" in chosen:
        bases["su"] = families.save(folder / "su", "phi3.5")
        config = bases["su"] / "config.json"
        config.write_text(config.read_text().replace('"longrope"', '"su"'))
    pairs = {name: (base, folder / f"{name}.gguf") for name, base in bases.items()}
    oracle.convert(dict(pairs.values()))
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("name", [*families.FAMILIES, *families.VARIANTS, "bfloat16", "su"])
def test_what_the_converter_makes(converted: Mapping[str, Pair], name: str, tmp_path: Path) -> None:
    base, reference = converted[name]
    assert differences(base, reference, tmp_path / "f32.gguf", "F32") == []


def of_types(pair: Pair, names: Iterable[str], folder: Path, *, weighed: Collection[str]) -> list[str]:
    """Compare types of a family with llama.cpp's, those of `weighed` with an importance matrix too."""
    base, f32 = pair
    weights, wrong = importance(f32), []
    for name in names:
        for imatrix in [*([] if name in NEED_IMATRIX else [None]), *([weights] if name in weighed else [])]:
            assert oracle.quantize(f32, folder / "theirs.gguf", name, imatrix=imatrix) == 0
            wrong += differences(base, folder / "theirs.gguf", folder / "ours.gguf", name, imatrix=imatrix)
    return wrong


@pytest.mark.slow
def test_every_type_on_llama(converted: Mapping[str, Pair], tmp_path: Path) -> None:
    """With an importance matrix too where the choice or the bytes depend on one."""
    weighed = (*NEED_IMATRIX, *DEPEND_ON_IMATRIX)
    assert of_types(converted["llama"], QUANTIZATIONS, tmp_path, weighed=weighed) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in families.FAMILIES if name != "llama"])
def test_covering_types_on_every_other_family(converted: Mapping[str, Pair], family: str, tmp_path: Path) -> None:
    assert of_types(converted[family], COVERING, tmp_path, weighed=NEED_IMATRIX) == []


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_type_on_every_family(converted: Mapping[str, Pair], family: str, tmp_path: Path) -> None:
    weighed = (*NEED_IMATRIX, *DEPEND_ON_IMATRIX) if family == "phi3" else NEED_IMATRIX
    assert of_types(converted[family], QUANTIZATIONS, tmp_path, weighed=weighed) == []


def test_the_covering_types_cover_every_kind_of_choice() -> None:
    """Legacy, K and IQ quants, with an importance matrix and without, of one type alone and of a mix."""
    assert {*COVERING} <= {*QUANTIZATIONS} and {*COVERING} & {*NEED_IMATRIX}
    assert {"F16", "Q4_0", "Q4_K", "Q2_K", "IQ4_XS", "IQ2_XXS"} == {BASE[name][0].name for name in COVERING}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """A small model with each real vocabulary, and what the converter makes of it, known by its ids alone."""
    folder, pairs = tmp_path_factory.mktemp("real"), {}
    for number, (name, (family, settings, save)) in enumerate(REAL.items()):
        base = families.save(folder / f"base-{chr(97 + number)}", family, vocabulary=save, **{**WIDTHS, **settings})
        pairs[name] = base, folder / f"{number}.gguf"
    oracle.convert(dict(pairs.values()))
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", REAL)
def test_real_vocabularies(real: Mapping[str, Pair], vocabulary: str, tmp_path: Path) -> None:
    base, f32 = real[vocabulary]
    assert oracle.quantize(f32, tmp_path / "q4.gguf", "Q4_0") == 0
    assert differences(base, tmp_path / "q4.gguf", tmp_path / "ours.gguf", "Q4_0") == []


def test_types_that_need_an_importance_matrix_are_refused_without(tmp_path: Path) -> None:
    base = families.save(tmp_path / "base", "mistral")
    f32, target = tmp_path / "f32.gguf", tmp_path / "a.gguf"
    export(base, None, {"F32": f32}, models.TEMPLATE, "small")
    weights = importance(f32)
    for name in QUANTIZATIONS:
        if name in NEED_IMATRIX:
            assert oracle.quantize(f32, tmp_path / "theirs.gguf", name) != 0
            with pytest.raises(ToolkitError, match="needs an importance matrix, but there is none") as caught:
                export(base, None, {name: target}, models.TEMPLATE, "small")
            assert "export.imatrix" in caught.value.hint
        else:
            plan(base, None, [name])
    del weights["blk.1.ffn_down.weight"]
    with pytest.raises(ToolkitError, match=r"`blk.1.ffn_down.weight` IQ2_XXS, .* has no values for it"):
        plan(base, None, ["IQ2_XXS"], imatrix=weights)
    plan(base, None, ["IQ4_XS"], imatrix=weights)
    for spoilt in (np.ones(7, np.float32), np.full(256, np.nan, np.float32)):
        with pytest.raises(ToolkitError, match="the importance matrix has"):
            plan(base, None, ["Q4_K_M"], imatrix={"blk.0.attn_q.weight": spoilt})
    with pytest.raises(ToolkitError, match=r"makes `token_embd.weight` IQ2_XXS"):  # ggml would abort
        plan(base, None, ["Q4_K_M"], overrides={"token_embd": "IQ2_XXS"})
    assert not target.exists()


@pytest.mark.slow
def test_overridden_types_are_written_as_llama_cpp_writes_them(tmp_path: Path) -> None:
    base = families.save(tmp_path / "base", "mistral", num_hidden_layers=3)
    f32, overrides = tmp_path / "f32.gguf", {"output.weight": "Q8_0", r"blk\.0\.ffn": "F16"}
    export(base, None, {"F32": f32}, models.TEMPLATE, "small")
    assert oracle.quantize(f32, tmp_path / "theirs.gguf", "Q4_K_M", overrides=overrides) == 0
    assert differences(base, tmp_path / "theirs.gguf", tmp_path / "a.gguf", "Q4_K_M", overrides=overrides) == []
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert (kinds["output.weight"], kinds["blk.0.ffn_up.weight"]) == ("Q8_0", "F16")


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        pytest.param("llama", {"num_hidden_layers": 33}, marks=pytest.mark.slow),
        pytest.param("mistral", {"num_hidden_layers": 17, "num_key_value_heads": 8}, marks=pytest.mark.slow),
        pytest.param("llama", {"num_hidden_layers": 80, "intermediate_size": 32}, marks=pytest.mark.slow),
        pytest.param("phi3", {"num_hidden_layers": 19}, marks=pytest.mark.slow),
        pytest.param("phi3.5", {"num_hidden_layers": 80, "intermediate_size": 32}, marks=pytest.mark.slow),
        pytest.param("qwen2.5", {"num_hidden_layers": 80, "intermediate_size": 32}, marks=pytest.mark.slow),
        pytest.param(
            "qwen3.5",
            {
                "num_hidden_layers": 17,
                "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 4 + ["linear_attention"],
            },
            marks=pytest.mark.slow,
        ),
        pytest.param("gemma2", {"num_hidden_layers": 26}, marks=pytest.mark.slow),
        pytest.param("gemma2", {"num_hidden_layers": 9, "num_key_value_heads": 1}, marks=pytest.mark.slow),
        ("llama", {"num_hidden_layers": 2, "hidden_size": 80, "num_attention_heads": 2, "intermediate_size": 96}),
        pytest.param(
            "llama",
            {"num_hidden_layers": 9, "hidden_size": 192, "num_attention_heads": 6, "intermediate_size": 80},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_choice_of_types(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """By the log of llama.cpp's dry run, with many layers, with and without an importance matrix and overrides."""
    base = families.save(tmp_path / "base", family, **{"intermediate_size": 256, **settings})
    f32 = tmp_path / "f32.gguf"
    export(base, None, {"F32": f32}, models.TEMPLATE, "small")
    weights = importance(f32)
    overrides = {
        r"blk\.[0-3]\.(attn_v|attn_qkv|ffn_down)": "Q8_0",
        r"ffn_down": "Q6_K",
        "^output": "F16",
        "token": "IQ4_NL",
    }
    choices: list[dict[str, Any]] = [{}, {"overrides": overrides}, {"overrides": {r"blk\.0\.": "Q5_0"}}]
    for name in [name for name in QUANTIZATIONS if BASE[name][0].name not in ("F32", "F16", "BF16")]:
        for imatrix in (None, weights):
            for chosen in choices:
                if imatrix is None and (name in NEED_IMATRIX):
                    continue
                theirs = oracle.chosen(f32, name, imatrix=imatrix, **chosen)
                planned = plan(base, None, [name], imatrix=imatrix, **chosen).tensors
                ours = {tensor.name: tensor.types[name].name for tensor in planned}
                assert theirs
                assert {key: ours[key] for key in theirs} == theirs, (name, imatrix is not None, chosen)
                assert all(ours[key] == "F32" for key in ours.keys() - theirs.keys())


def test_the_settings_know_the_same_types() -> None:
    assert set(QUANTIZATIONS) == set(BASE)
    assert set(TENSOR_TYPES) == {kind.name for kind in KNOWN}
