"""A base that keeps a state from token to token: each record of a micro-batch has a row of its own."""

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support import families, models
from tests.train.conftest import losses, plain
from toolkit.core import config_file
from toolkit.core.config import Config
from toolkit.core.hardware import Gpu
from toolkit.core.run_folder import RunFolder
from toolkit.model.base import Base
from toolkit.model.text_part import text_part
from toolkit.train import checks, example_table, job, peft_backend, train
from toolkit.train.backend import UnslothFailed
from toolkit.train.unsloth_backend import load_with_unsloth


def save_other(folder: Path, name: str) -> Path:
    """Save a small model that keeps a state and is no family of the exporter."""
    import transformers

    shape: dict[str, Any] = {"vocab_size": 608, "hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
    others: dict[str, dict[str, Any]] = {
        "Mamba": {"state_size": 8},
        "Lfm2": {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
                 "layer_types": ["conv", "full_attention"]},
    }  # fmt: skip
    models.save_tokenizer(folder)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**shape, **others[name])
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_class_for_experts_trains_without_any(small: tuple[Config, RunFolder], tmp_path: Path) -> None:
    """Granite-4.0's config.json has the coefficient of the experts' loss, but no experts."""
    settings, folder = small
    settings = plain(settings, max_steps=2, target_modules=["q_proj", "output_linear"], max_length=500)
    saved = families.save(tmp_path / "base", "granite4")
    assert json.loads((saved / "config.json").read_text())["router_aux_loss_coef"] > 0
    train(settings, folder, Base("base", saved))
    assert len(losses(folder)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "completion_only"),
    [
        ("qwen3.5", True),
        ("qwen3.5", False),
        ("qwen3.5 that sees", False),
        ("granite4", False),
        ("Mamba", False),
        ("Lfm2", False),
    ],
)
def test_the_loss_of_records_together_is_that_of_each_alone(
    small: tuple[Config, RunFolder], tmp_path: Path, name: str, completion_only: bool
) -> None:
    """And in one row it would not be: what one record leaves behind reaches into the next."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from toolkit.train.trainer import make

    settings, folder = small
    known = name in (*families.FAMILIES, *families.VARIANTS)
    target = ["q_proj"] if name == "granite4" else ["in_proj_qkv", "out_proj", "q_proj"] if known else ["in_proj"]
    settings = plain(
        settings, batch_size=4, gradient_accumulation_steps=1, max_steps=3, completion_only_loss=completion_only,
        target_modules=target, max_length=500,
    )  # fmt: skip
    saved = families.save(tmp_path / "base", name) if known else save_other(tmp_path / "base", name)
    base = Base("base", saved)
    backend = peft_backend.make_peft_backend("cpu", "")
    work = job.lay_out_job(settings, folder, base, backend, "f32", restart=False, at_most=0)
    assert not work.packs and work.plan.micro_batch == 4
    model = backend.load(base, settings, work.plan, "cpu", torch.float32)
    data = example_table.dataset(work.splits["train"]).select(work.order.reshape(-1))
    trainer = make(work, model, data, None)
    inner, renamed = text_part(AutoConfig.from_pretrained(saved))
    reference = AutoModelForCausalLM.from_pretrained(saved, config=inner, dtype=torch.float32, **renamed)
    records, one = work.splits["train"], torch.ones(())
    for places, inputs in zip(work.order.reshape(3, 4), trainer.get_train_dataloader(), strict=True):
        mine = [records[place] for place in places]
        assert inputs["input_ids"].shape == (4, max(len(record.input_ids) for record in mine))
        assert "position_ids" not in inputs and not inputs["attention_mask"].all()
        with torch.no_grad():
            model.eval()
            alone = sum(_summed(reference, record.input_ids, record.labels) for record in mine)
            found = trainer.compute_loss(model, dict(inputs), num_items_in_batch=one).item()
            row = {
                "input_ids": torch.tensor([[*itertools.chain.from_iterable(record.input_ids for record in mine)]]),
                "labels": torch.tensor([[*itertools.chain.from_iterable([-100, *r.labels[1:]] for r in mine)]]),
                "position_ids": torch.cat([torch.arange(len(record.input_ids)) for record in mine])[None],
            }
            mixed = trainer.compute_loss(model, row, num_items_in_batch=one).item()
        assert found == pytest.approx(alone, rel=1e-5)
        assert abs(mixed - alone) > 4e-5 * alone


def _summed(model: Any, ids: list[int], labels: list[int]) -> float:
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    found: float = torch.nn.functional.cross_entropy(
        logits, torch.tensor(labels[1:]), ignore_index=-100, reduction="sum"
    ).item()
    return found


@pytest.mark.slow
def test_the_micro_batch_does_not_change_the_losses(small: tuple[Config, RunFolder], tmp_path: Path) -> None:
    settings, _ = small
    base = Base("base", families.save(tmp_path / "base", "qwen3.5"))
    found = []
    for size in (1, 4):
        own = plain(settings, batch_size=size, gradient_accumulation_steps=4 // size, max_steps=2,
                    target_modules=["in_proj_qkv", "q_proj"], max_length=500)  # fmt: skip
        folder = small[1] if size == 1 else RunFolder(tmp_path / "other" / "small", "small")
        if size == 4:
            folder.path.mkdir(parents=True)
            (folder.path / "data").symlink_to(small[1].data.resolve())
        train(own, folder, base)
        found.append(losses(folder))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "packs"), [("qwen3.5", False), ("qwen3.5 that sees", False), ("granite4", False), ("qwen3", True)]
)
def test_the_doctor_says_that_records_are_not_packed(name: str, packs: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(families.config_of(name)))
    config = config_file.build({"model": {"base": str(tmp_path)}})
    found = checks.attention(config, Gpu("H100", "", 0, 0, True, (9, 0), True))
    assert found.ok and ("a row for each record" in found.found) != packs


def test_unsloth_leaves_these_bases_to_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(families.config_of("qwen3.5")))
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=None))
    with pytest.raises(UnslothFailed, match="keeps a state from token to token"):
        load_with_unsloth(Base("base", tmp_path), config_file.build({}), None, None, None)  # type: ignore[arg-type]
