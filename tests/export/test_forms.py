"""The other outputs, held against the libraries that load them: a merged model folder, and an adapter for llama.cpp."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tests.support import models
from tests.support.damage import edit_json
from tests.support.trained import train
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.export import export, ordering
from toolkit.export.lora_gguf import export_lora
from toolkit.export.merged_model import export_merged

IDS = np.random.default_rng(0).integers(0, 480, 200).tolist()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_model(tmp_path_factory.mktemp("base"), dtype=torch.bfloat16)


def peft_merged(base: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def transformers_logits(folder: Path, ids: list[int] = IDS) -> np.ndarray:
    """Load as anybody would, with the dtype that config.json states, and compute in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoTokenizer.from_pretrained(folder).chat_template == models.TEMPLATE
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        logits: np.ndarray = model.float().eval()(torch.tensor([ids])).logits[0].numpy()
    return logits


def kl(expected: np.ndarray, found: np.ndarray) -> float:
    expected, found = models.log_softmax(expected), models.log_softmax(found)
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())


def check_logits(base: Path, adapter: Path, folder: Path, dtype: torch.dtype) -> None:
    """The folder computes what base + adapter compute but for rounding, and what PEFT's merge in 16 bits computes."""
    found, exact = transformers_logits(folder), models.reference_logits(base, adapter, IDS)
    model = peft_merged(base, adapter).eval()
    with torch.no_grad():
        for weight in model.parameters():  # not model.to(dtype), which would round the rotary frequencies as well
            weight.copy_(weight.to(dtype))
        rounded = model(torch.tensor([IDS])).logits[0].numpy()
    assert kl(rounded, found) < 1e-6
    assert kl(exact, found) < (1e-3 if dtype == torch.bfloat16 else 1e-5)
    assert kl(exact, models.reference_logits(base, None, IDS)) > 0.02  # the adapter does make a difference


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.bfloat16, "bfloat16"),
        pytest.param(torch.float16, "float16", marks=pytest.mark.slow),
        pytest.param(torch.float32, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_the_merged_folder_is_pefts_merge_rounded_once(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    base = models.save_model(tmp_path / "base", dtype=dtype)
    adapter = models.save_adapter(tmp_path / "adapter", base)
    figures = export_merged(base, adapter, tmp_path / "merged", models.TEMPLATE).figures
    assert figures["dtype"] == name
    found = load_file(tmp_path / "merged" / "model.safetensors")
    expected = peft_merged(base, adapter).state_dict()
    assert set(found) == set(expected)
    rounded = getattr(torch, name)
    for key, value in expected.items():
        assert found[key].dtype == rounded
        # B @ A in another order of sums may fall on the other side of a rounding
        same = (found[key] == value.to(rounded)).float().mean()
        assert same > 0.999, key
        step = 2**-8 if name == "bfloat16" else 2**-11
        torch.testing.assert_close(found[key].float(), value, rtol=1.01 * step, atol=1e-6)
    check_logits(base, adapter, tmp_path / "merged", rounded)


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        ("llama-bpe", "LlamaTokenizerFast"),
        ("smollm", "GPT2Tokenizer"),
        ("dbrx", "GPT2TokenizerFast"),
        ("smollm", "PreTrainedTokenizerFast"),
    ],
)
def test_the_merged_folder_splits_text_as_in_training(pre: str, name: str, tmp_path: Path) -> None:
    """As R1-Distill-Llama, Granite and OLMo-2 name classes by which transformers 5 would split otherwise."""
    from transformers import AutoTokenizer

    base = models.save_model(tmp_path / "base", pre=pre, hidden_size=32, intermediate_size=32, num_attention_heads=2)
    edit_json(base / "tokenizer_config.json", tokenizer_class=name)
    export_merged(base, None, tmp_path / "merged", models.TEMPLATE)
    trained = Tokenizer.from_file(str(base / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for text in ("Hello  two  spaces, 12345 times", "He'LL\n\n\tsee", *models.TEXT):
        assert loaded(text)["input_ids"] == trained.encode(text).ids


@pytest.mark.slow
def test_shards_and_index(base: Path, tmp_path: Path) -> None:
    adapter = models.save_adapter(tmp_path / "adapter", base)
    export_merged(base, adapter, tmp_path / "whole", models.TEMPLATE)
    outcome = export_merged(base, adapter, tmp_path / "merged", models.TEMPLATE, shard=500_000)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert max(file.stat().st_size for file in files) < 500_000 + 10_000
    assert set(index["weight_map"].values()) == {file.name for file in files} == set(outcome.figures["sha256"])
    assert index["metadata"]["total_size"] == outcome.figures["bytes"]
    pieces = {key: value for file in files for key, value in load_file(file).items()}
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert all(torch.equal(pieces[key], whole[key]) for key in whole) and set(pieces) == set(whole)
    assert np.array_equal(transformers_logits(tmp_path / "merged"), transformers_logits(tmp_path / "whole"))
    # what was merged is a base like any other
    export(tmp_path / "merged", None, {"Q8_0": tmp_path / "a.gguf"}, models.TEMPLATE, "small")


@pytest.mark.slow
def test_a_tied_model_keeps_its_one_matrix(tmp_path: Path) -> None:
    base = models.save_model(tmp_path / "base", tie_word_embeddings=True)
    adapter = models.save_adapter(tmp_path / "adapter", base)
    export_merged(base, adapter, tmp_path / "merged", models.TEMPLATE)
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    check_logits(base, adapter, tmp_path / "merged", torch.bfloat16)


def test_a_failure_leaves_the_former_folder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.export import tensors

    target = tmp_path / "merged"
    export_merged(base, None, target, models.TEMPLATE)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    monkeypatch.setattr(tensors, "trained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_merged(base, None, target, models.TEMPLATE)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    ("tied", "options"),
    [
        (True, {"resize": 530, "modules_to_save": ["embed_tokens"]}),
        pytest.param(True, {"use_dora": True, "target_modules": ["q_proj", "lm_head"]}, marks=pytest.mark.slow),
        pytest.param(True, {"resize": 530, "trainable_token_indices": [525, 3]}, marks=pytest.mark.slow),
        pytest.param(False, {"modules_to_save": ["norm", "lm_head"]}, marks=pytest.mark.slow),
        pytest.param(False, {"bias": "all", "modules_to_save": ["k_proj"]}, marks=pytest.mark.slow),
    ],
)
def test_the_merged_folder_of_other_adapters_than_lora(tmp_path: Path, tied: bool, options: dict[str, Any]) -> None:
    """Tensors of the adapter's own, a head that is no longer the embedding, more tokens: any loader gets it right."""
    from transformers import AutoTokenizer

    base = models.save_model(
        tmp_path / "base", dtype=torch.float16, tie_word_embeddings=tied, hidden_size=64, attention_bias=True
    )
    made = train(tmp_path / "adapter", base, **options)
    rows = options.get("resize", 512)
    if rows > 512:  # the adapter brings names for the new rows
        models.add_tokens(base, made.folder, "<new>")
    figures = export_merged(base, made.folder, tmp_path / "merged", models.TEMPLATE).figures
    assert figures["dtype"] == "float16"
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] == ("lm_head.weight" not in weights)
    assert config["vocab_size"] == len(weights["model.embed_tokens.weight"]) == rows
    assert kl(made.expected, transformers_logits(tmp_path / "merged", made.ids)) < 1e-5
    known = Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab_size()
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged").encode("<new>", add_special_tokens=False)
    assert (ids == [known]) == (rows > 512)
    # as a base it makes the same GGUF as base and adapter but for rounding
    export(tmp_path / "merged", None, {"F32": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    export(base, made.folder, {"F32": tmp_path / "b.gguf"}, models.TEMPLATE, "small")
    one, other = (gguf.GGUFReader(tmp_path / name) for name in ("a.gguf", "b.gguf"))
    for mine, theirs in zip(one.tensors, other.tensors, strict=True):
        assert mine.name == theirs.name
        np.testing.assert_allclose(mine.data, theirs.data, rtol=1e-3, atol=1e-6)


# The adapter alone


def kl_with_lora(base: Path, adapter: Path, gguf_base: Path, lora: Path) -> float:
    """Mean KL of llama.cpp with `--lora` from transformers with PEFT's unmerged adapter, in nats."""
    import llama_cpp

    from toolkit import llamacpp

    expected = models.log_softmax(models.reference_logits(base, adapter, IDS))
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    llm = llama_cpp.Llama(str(gguf_base), n_ctx=256, n_batch=256, lora_path=str(lora), verbose=False, **exact)
    try:
        found = models.log_softmax(llamacpp.logits(llm, IDS, 0))
    finally:
        llm.close()
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())


@pytest.fixture(scope="module")
def gguf_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "base.gguf"
    export(base, None, {"F32": path}, models.TEMPLATE, "small")
    return path


KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "plain": ({}, 16),
    "rslora": ({"use_rslora": True}, 16 * 8**0.5),
    "ranks": ({"rank_pattern": {"q_proj": 4, "down_proj": 16}}, 16),
    "alphas": ({"alpha_pattern": {"k_proj": 5, "layers.0.self_attn.v_proj": 30}}, 30),
    "rslora, ranks and alphas": (
        {"use_rslora": True, "rank_pattern": {"o_proj": 4}, "alpha_pattern": {"k_proj": 5}}, 16 * 8**0.5,
    ),
    "a head": ({"target_modules": ["lm_head", "q_proj", "k_proj"]}, 16),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind.startswith("rslora,") else pytest.mark.slow) for kind in KINDS]
)
def test_llama_cpp_with_the_adapter_is_transformers_with_it(
    base: Path, gguf_base: Path, tmp_path: Path, kind: str
) -> None:
    options, alpha = KINDS[kind]
    adapter = models.save_adapter(tmp_path / "adapter", base, **options)
    target = tmp_path / "lora.gguf"
    figures = export_lora(base, adapter, target, "small").figures
    fields = {key: field.contents() for key, field in gguf.GGUFReader(target).fields.items()}
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.lora.alpha"] == pytest.approx(alpha) == figures["alpha"]
    assert kl_with_lora(base, adapter, gguf_base, target) <= 1e-6
    assert models.kl(base, adapter, gguf_base) > 1e-4  # the adapter does make a difference


@pytest.mark.slow
def test_a_scale_of_zero_stays_zero(base: Path, gguf_base: Path, tmp_path: Path) -> None:
    adapter = models.save_adapter(tmp_path / "adapter", base, lora_alpha=0)
    export_lora(base, adapter, tmp_path / "lora.gguf", "small")
    assert kl_with_lora(base, adapter, gguf_base, tmp_path / "lora.gguf") <= 1e-6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_dora": True}, "has DoRA,"),
        ({"bias": "lora_only"}, 'trained biases (bias = "lora_only")'),
        ({"modules_to_save": ["lm_head"]}, "fully trained modules"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "LoRA on embeddings"),
        ({"lora_bias": True}, "a bias in lora_B"),
        ({"trainable_token_indices": [3]}, "trained token embeddings"),
    ],
)
def test_what_llama_cpp_cannot_apply_is_refused_by_name(
    base: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    adapter = models.save_adapter(tmp_path / "adapter", base, **options)
    with pytest.raises(ToolkitError) as caught:
        export_lora(base, adapter, tmp_path / "out" / "lora.gguf", "small")
    assert words in caught.value.message
    assert "--format gguf" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_bias_in_the_weights_alone_is_refused_too(base: Path, tmp_path: Path) -> None:
    from tests.support.damage import edit_weights

    adapter = models.save_adapter(tmp_path / "adapter", base)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    edit_weights(adapter / "adapter_model.safetensors", lambda tensors: tensors.update({name: torch.ones(256)}))
    with pytest.raises(ToolkitError, match=r"more than LoRA on linear layers .*lora_magnitude_vector"):
        export_lora(base, adapter, tmp_path / "lora.gguf", "small")


def test_the_head_of_a_tied_model_is_refused(tmp_path: Path) -> None:
    base = models.save_model(tmp_path / "base", tie_word_embeddings=True)
    adapter = models.save_adapter(tmp_path / "adapter", base, target_modules=["lm_head", "q_proj"])
    with pytest.raises(ToolkitError):
        export_lora(base, adapter, tmp_path / "lora.gguf", "small")
    assert not (tmp_path / "lora.gguf").exists()


# On the command line


@pytest.mark.slow
def test_each_form_on_the_command_line(base: Path, tmp_path: Path, toolkit: Any) -> None:
    adapter = models.save_adapter(tmp_path / "mine", base)
    shutil.copy(base / "tokenizer.json", adapter)
    common = ("export", "--adapter", str(adapter), "--base", str(base), "--output", "out", "--json")
    for form, name in (("lora-gguf", "mine-lora.gguf"), ("safetensors", "mine-merged")):
        planned = toolkit(*common, "--format", form, "--dry-run")
        assert planned.code == 0, planned.err
        assert not (tmp_path / "out" / name).exists()
        done = toolkit(*common, "--format", form)
        assert done.code == 0, done.err
        [file] = done.json["files"].values()
        assert Path(file["path"]) == Path("out") / name
        assert (tmp_path / "out" / name).exists()
        [foreseen] = planned.json["files"].values()
        assert 0.9 * file["bytes"] < foreseen["bytes"] <= file["bytes"]
        assert "already there" in toolkit(*common, "--format", form).json["error"]
    assert toolkit(*common, "--format", "safetensors", "--quant", "Q8_0").code == 2


@pytest.mark.slow
def test_a_runs_own_adapter_in_another_form(base: Path, tmp_path: Path, toolkit: Any) -> None:
    models.save_adapter(tmp_path / "exports" / "mine" / "adapter", base)
    (tmp_path / "toolkit.toml").write_text(f'[run]\nname = "mine"\n[model]\nbase = "{base}"\n')
    assert "--output is missing" in toolkit("export", "--format", "safetensors", "--json").json["error"]
    done = toolkit("export", "--format", "safetensors", "--output", "out", "--json")
    assert done.code == 0, done.err
    assert "### Response" in (tmp_path / "out" / "mine-merged" / "chat_template.jinja").read_text()
    assert load_file(tmp_path / "out" / "mine-merged" / "model.safetensors")


@pytest.mark.slow
def test_the_plan_on_the_command_line(base: Path, tmp_path: Path, toolkit: Any) -> None:
    adapter = models.save_adapter(tmp_path / "mine", base)
    common = ("export", "--adapter", str(adapter), "--base", str(base), "--output", "out", "--dry-run")
    chosen = ("--quant", "Q4_K_M", "--quant", "Q8_0")
    shown = toolkit(*common, *chosen)
    assert shown.code == 0, shown.err
    assert "blk.*.attn_v.weight" in shown.out and "blk.1." not in shown.out
    rows = {line.split()[0]: line for line in shown.out.splitlines() if line.strip()}
    assert "Q4_K" in rows["blk.*.attn_q.weight"] and "Q8_0" in rows["blk.*.attn_q.weight"]
    assert re.search(r"21 +[0-9.]+ [kM]B +[0-9.]+ [kM]B$", rows["total"]) and "memory" in shown.out
    assert re.search(r"about [0-9.]+ s on \d+ cores", shown.out)
    plan = toolkit(*common, *chosen, "--json").json["plan"]
    export(base, adapter, {"Q4_K_M": tmp_path / "a.gguf"}, "{{ messages }}", "x")
    written = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert {tensor["name"]: tensor["types"]["Q4_K_M"] for tensor in plan["tensors"]} == written
    assert plan["bytes"]["Q4_K_M"] < (tmp_path / "a.gguf").stat().st_size < 1.1 * plan["bytes"]["Q4_K_M"] + 20_000
    assert plan["seconds"] >= 0 and plan["memory_bytes"] > 10**8
    assert sum(tensor["trained"] for tensor in plan["tensors"]) == 14
    assert not (tmp_path / "out").exists()


def test_an_imatrix_is_for_runs(base: Path, tmp_path: Path) -> None:
    adapter = models.save_adapter(tmp_path / "mine", base)
    with pytest.raises(ToolkitError, match="needs the training records") as caught:
        ordering.of_adapter(adapter, None, str(tmp_path / "none.toml"), ("export.imatrix=true",))
    assert caught.value.exit_code == USAGE
