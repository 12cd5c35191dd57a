"""A whole small run: random Llama, byte-level BPE, LoRA adapter, held-out rows and the exported GGUF files."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.core.config import Config
from toolkit.core.config_file import build
from toolkit.core.manifest import Manifest
from toolkit.core.run_folder import RunFolder
from toolkit.export import export
from toolkit.formats.pretokenizers import LLAMA3_SPLIT
from toolkit.model.base import Base
from toolkit.prompt.format import prompt_format
from toolkit.prompt.templates import chat_template
from toolkit.report.facts import gather
from toolkit.report.model_card import model_card

QUANTIZATIONS = ["F32", "F16", "Q8_0"]
WORDS = "the fever of a child may rise at night and water helps when rest does not; see a doctor if it stays"
ROWS = [
    ("What is a fever?", "A fever is a body temperature above 38 degrees. Rest and water help."),
    (
        "When should I see a doctor?",
        "See a doctor if the fever stays for three days.\n\nAt once, if breathing is hard.",
    ),
    ("What does <|end_of_text|> mean?", "It is text: <|begin_of_text|> and ### Response: are, too."),
    ("Qu'est-ce que la fièvre ?", "Une température — élevée.\u2028Nach der Zeile: 体温 39 °C 🤒"),
    ("How much water?", "Two litres."),
    ("Does rest help?", "Yes, it does."),
]


@dataclass(frozen=True)
class World:
    """What a test needs to call validate."""

    config: Config
    folder: RunFolder
    base: Base

    def manifest(self) -> Manifest:
        return Manifest(run_id="test")


def settings(folder: Path, **validation: Any) -> Config:
    return build(
        {
            "run": {"name": "tiny", "folder": str(folder)},
            "export": {"quantizations": QUANTIZATIONS, "default": "Q8_0"},
            "validate": {
                "rows": 4,
                "answer_tokens": 8,
                "questions": ["What is a fever?", "Does rest help?"],
                "max_kl": {"Q8_0": 0.02},
                **validation,
            },
        }
    )


def tokenizer(folder: Path) -> int:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    encoder = Tokenizer(models.BPE(ignore_merges=True))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoder.decoder = decoders.ByteLevel()
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[bos, eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    encoder.train_from_iterator([WORDS, *(text for row in ROWS for text in row)] * 3, trainer)
    encoder.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    PreTrainedTokenizerFast(tokenizer_object=encoder, bos_token=bos, eos_token=eos).save_pretrained(folder)
    return int(encoder.get_vocab_size())


def base_model(folder: Path, extra_rows: int = 0) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = tokenizer(folder) + extra_rows
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
            initializer_range=0.15,
        )
    )
    model.generation_config.repetition_penalty = 5.0  # a trap: greedy answers must not see it
    model.save_pretrained(folder)


def adapter(base: Path, folder: Path, seed: int) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, (question, answer) in enumerate(rows, 10):
            row = {"row": number, "instruction": "Explain:", "input": question, "output": answer, "truncated": False}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def world(root: Path) -> World:
    """Build everything once: exported from base and adapter, as the export room does."""
    config = settings(root)
    folder = RunFolder(root / "tiny", "tiny")
    base = root / "base"
    base.mkdir(parents=True)
    base_model(base)
    adapter(base, folder.adapter, seed=1)
    write_rows(folder.split_file("test"), ROWS)
    template = chat_template(prompt_format(config.prompt), bos=True)
    export(base, folder.adapter, {name: folder.gguf(name) for name in QUANTIZATIONS}, template, "tiny")
    return World(config, folder, Base("someone/tiny", base, commit="c0ffee"))


def copy(made: World, root: Path, **validation: Any) -> World:
    """Copy a run, so that a test may damage it."""
    folder = RunFolder(root / "tiny", "tiny")
    shutil.copytree(made.folder.path, folder.path)
    return World(settings(root, **validation), folder, made.base)


def card_of(
    run: World, report: dict[str, Any] | None = None, config: Config | None = None, manifest: Manifest | None = None
) -> str:
    """The model card of a validated run, or with another report, other settings or another manifest."""
    facts = gather(config or run.config, run.folder, manifest or run.manifest(), report=report)
    assert facts.report is not None, facts.problems
    return model_card(facts, facts.report)
