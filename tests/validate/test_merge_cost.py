"""The cost of merging into a base other than the trained one, measured outside the gate: KL, top-1 and perplexity."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import scored_models
from tests.support.four_bit import quantized_folder
from tests.support.places import REPOSITORY
from tests.validate.conftest import Trained
from toolkit.core.input_settings import ModelSettings
from toolkit.core.manifest import StageRecord
from toolkit.core.output_settings import ExportSettings
from toolkit.model import dequantized, merge_base
from toolkit.model.merge_base import OtherBase
from toolkit.validate import reference, validate
from toolkit.validate.layers import open_trained
from toolkit.validate.metrics import perplexity
from toolkit.validate.report import report_table
from toolkit.validate.weights import Weights


@pytest.fixture(scope="module")
def four(made: scored_models.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small base in 4 bits, as a QLoRA is trained on it."""
    return quantized_folder(made.base.folder, tmp_path_factory.mktemp("four") / "tiny-bnb-4bit", "nf4", True)


def of(four: Path | None, **changes: Any) -> OtherBase:
    values = {"trained_on": "tiny-bnb-4bit", "instead": "tiny", "merged_as_trained": False, "folder": four}
    return OtherBase(**{**values, **changes})


def logits(base: Path, adapter: Path, trained: Trained) -> torch.Tensor:
    """Base + adapter over the scored records, by transformers and PEFT alone, in float64."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    with torch.no_grad():
        rows = [model(torch.tensor([r.ids])).logits[0, r.start - 1 : -1] for r in trained.records[:4]]
    return torch.cat(rows).double()


def measured(base: Path, made: scored_models.World, trained: Trained, other: OtherBase) -> reference.Reference:
    layers = open_trained(base, made.folder.adapter)
    with reference.measured(layers, trained.records[:4], made.folder.path, other) as found:
        return found


@pytest.mark.slow
def test_it_is_the_divergence_of_the_merged_model_from_the_one_that_was_trained(
    made: scored_models.World, trained: Trained, four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = dequantized.plain_folder(four)
    as_trained, merged = (logits(base, made.folder.adapter, trained) for base in (plain, made.base.folder))
    log_p, log_q = as_trained.log_softmax(-1), merged.log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    targets = torch.tensor(np.concatenate([record.targets for record in trained.records[:4]]))
    exact = [torch.nn.functional.cross_entropy(rows, targets).exp().item() for rows in (as_trained, merged)]
    assert expected.mean() > 1e-4  # 4 bits do make a difference
    for found, base in (
        (measured(made.base.folder, made, trained, of(four)).merge, made.base.folder),
        (measured(plain, made, trained, of(made.base.folder, merged_as_trained=True)).merge, plain),
    ):
        assert found and found.distance and found.trained_nll is not None and not found.problem, base
        assert np.allclose(found.distance.kl, expected.numpy(), rtol=1e-3, atol=1e-8)
        assert perplexity(found.trained_nll) == pytest.approx(exact[0], rel=1e-5)
        assert perplexity(found.distance.nll) == pytest.approx(exact[1], rel=1e-5)
        assert list(found.distance.same_top) == (as_trained.argmax(-1) == merged.argmax(-1)).tolist()


@pytest.mark.slow
def test_weights_that_training_quantized_as_it_loaded_them(
    made: scored_models.World, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its embedding, which 4 bits leave as it is, is not read whole: that of Llama-3.1-8B would take 2.1 GB."""
    real, whole = Weights.read, set()

    def read(self: Weights, name: str, **options: Any) -> Any:
        whole.add(name)
        return real(self, name, **options)

    monkeypatch.setattr(Weights, "read", read)
    bits = pytest.importorskip("bitsandbytes").functional
    base = tmp_path / "rounded"
    shutil.copytree(made.base.folder, base)
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    for name in [name for name in weights if "_proj" in name]:
        packed = bits.quantize_4bit(weights[name].bfloat16(), quant_type="nf4", compress_statistics=True)
        weights[name] = bits.dequantize_4bit(*packed).float()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    found = measured(made.base.folder, made, trained, of(made.base.folder, through="bfloat16")).merge
    by_hand = measured(made.base.folder, made, trained, of(base)).merge
    assert found and found.distance and by_hand and by_hand.distance
    assert found.distance.kl.mean() > 1e-4
    np.testing.assert_array_equal(found.distance.kl, by_hand.distance.kl)
    assert "model.layers.0.self_attn.q_proj.weight" in whole and "model.embed_tokens.weight" not in whole


@pytest.mark.slow
def test_report_table_and_card_show_it_and_no_verdict_depends_on_it(
    made: scored_models.World, four: Path, tmp_path: Path
) -> None:
    run = scored_models.copy(made, tmp_path, rows=2, questions=[], max_kl={"Q8_0": 0.02})
    outcome = validate(run.config, run.folder, run.base, run.manifest(), of(four))
    report = json.loads(run.folder.report.read_text(encoding="utf-8"))
    entry = report["merge"]
    assert report["passed"] is True and entry["mean_kl"] > report["quantizations"]["Q8_0"]["mean_kl"]
    assert outcome.figures["merge"] == entry
    documented = (REPOSITORY / "docs/reference/report.md").read_text(encoding="utf-8")
    assert [name for name in entry if f"`{name}`" not in documented] == []
    shown, card = report_table(outcome.figures).splitlines()[-1], scored_models.card_of(run)
    assert shown.startswith("merged into tiny, trained on tiny-bnb-4bit: mean KL ")
    for value in (f"{entry['perplexity']:.3f}", f"{entry['trained_perplexity']:.3f}", "not part of any verdict"):
        assert value in shown and value in card
    report["merge"]["merged_as_trained"] = True
    assert "merged into tiny-bnb-4bit, which it was trained on; if merged into tiny instead: mean KL" in report_table(
        report
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: None, "`tiny-bnb-4bit` is not on this machine"),
        (lambda folder: (folder / "model.safetensors").unlink() or folder, "no `model.safetensors` and no"),
    ],
)
def test_what_cannot_be_measured_is_said_and_fails_nothing(
    made: scored_models.World, four: Path, tmp_path: Path, spoil: Callable[[Path], Path | None], words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(four, tmp_path / "four")
    run = scored_models.copy(made, tmp_path, rows=1, questions=[])
    validate(run.config, run.folder, run.base, run.manifest(), of(spoil(tmp_path / "four")))
    report = json.loads(run.folder.report.read_text(encoding="utf-8"))
    assert report["passed"] is True and report["merge"]["mean_kl"] is None
    assert words in report["merge"]["problem"]
    assert words in report_table(report) and "not measured" in capsys.readouterr().err


def record(device: str, **settings: Any) -> StageRecord:
    figures = {"device": device, "precision": "bf16"}
    return StageRecord(settings=settings, inputs=[], outputs=[], versions={}, seconds=1.0, finished="", figures=figures)


def test_which_other_base_there_is(
    made: scored_models.World, four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(four, "tiny-bnb-4bit")
    shutil.copytree(made.base.folder, "tiny")
    quantized, plain = ModelSettings(base="tiny-bnb-4bit"), ModelSettings(base="tiny")
    sixteen, as_trained = ExportSettings(), ExportSettings(merge_base="as-trained")
    cuda, cpu = record("cuda", **{"model.load_in_4bit": True}), record("cpu", **{"model.load_in_4bit": True})
    here = Path("tiny-bnb-4bit")
    assert merge_base.other(quantized, sixteen, cuda) == of(here)
    assert merge_base.other(quantized, sixteen, None) == of(here)
    assert merge_base.other(quantized, as_trained, cuda) == of(Path("tiny"), merged_as_trained=True)
    assert merge_base.other(quantized, sixteen, cpu) is None  # a CPU trained on the 16-bit namesake
    assert merge_base.other(plain, sixteen, cpu) is None
    assert merge_base.other(plain, sixteen, None) is None
    at_load = of(Path("tiny"), trained_on="tiny in 4 bits", through="bfloat16")
    assert merge_base.other(plain, sixteen, cuda) == at_load
    assert merge_base.other(plain, sixteen, record("cuda", **{"model.load_in_4bit": False})) is None
    shutil.rmtree(here)
    assert merge_base.other(quantized, sixteen, cuda) == of(None)
    assert merge_base.other_files(quantized, sixteen) == []
    assert merge_base.other_files(quantized, as_trained)[0] == Path("tiny/config.json")
