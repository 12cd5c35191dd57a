"""The train room: prepared records + base model → a LoRA adapter, with the loss it reached on held-out records."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from toolkit import console, tokens
from toolkit.base import Base, silence_transformers
from toolkit.config import Config
from toolkit.errors import ToolkitError
from toolkit.prompt import chat_template, prompt_format
from toolkit.run import Outcome, RunFolder, write_text, writing_folder
from toolkit.train import checkpoints, examples, plot
from toolkit.train.backend import choose
from toolkit.train.loop import Interruption, LogKeeper, held_out_loss, make_trainer


def train(config: Config, folder: RunFolder, base: Base, *, restart: bool = False) -> Outcome:
    """Fine-tune the base on `data/train.jsonl` and write `adapter/`, `train_log.jsonl` and `loss.png`.

    An interrupted run goes on from its last whole checkpoint, unless `restart`. Raises KeyboardInterrupt after Ctrl-C,
    once the step in hand is saved; ToolkitError where the data or the loss are no good.
    """
    started = time.monotonic()
    backend = choose(config.train.backend)
    console.say(f"training on {backend.device}: {backend.reason}")
    form = prompt_format(config.prompt)
    tokenizer = tokens.load(base.folder, form)
    sides = {side: examples.tokenize(folder.side(side), tokenizer, form, config.train) for side in ("train", "val")}
    if not sides["train"]:
        raise ToolkitError(f"`{folder.side('train')}` holds no records", hint="run `toolkit prepare` again")
    examples.prove(sides["train"] + sides["val"], tokenizer)
    examples.show(sides["train"], tokenizer)

    fingerprint = checkpoints.fingerprint(config, folder)
    if restart:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    resume = checkpoints.latest(folder.checkpoints, fingerprint)
    silence_transformers()
    model = backend.load(base, config)
    trainable, total = parameters(model)
    console.say(f"adapter: {trainable:,} trainable of {total:,} parameters")

    log = LogKeeper(folder.checkpoints / "train_log.jsonl", resume.step if resume else 0)
    before = log.held_out(0)
    if before is None and sides["val"]:
        before = held_out_loss(model, sides["val"], config, backend, "held-out loss before")
        log.add({"step": 0, "held_out_loss": before})
    if resume:
        console.say(f"going on from step {resume.step} of {config.train.steps}")
    interruption = Interruption()
    with console.progress("training", config.train.steps, "steps") as progress:
        trainer = make_trainer(
            config, folder, backend, model, base.folder, sides, log, progress, interruption, fingerprint
        )
        with interruption.watching():
            trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
    if interruption.requested:
        step = trainer.state.global_step
        console.say(f"stopped after step {step} of {config.train.steps}; the same command goes on from there")
        raise KeyboardInterrupt
    after = None
    if sides["val"]:
        after = held_out_loss(model, sides["val"], config, backend, "held-out loss after")
        log.add({"step": config.train.steps, "held_out_loss": after})
    _save(model, base.folder, chat_template(form), form.eos, folder.adapter)
    write_text(folder.train_log, log.text())
    plot.loss_curve(log.entries, folder.loss_plot)
    outputs = sorted(path for path in folder.adapter.rglob("*") if path.is_file())
    losses = [entry["loss"] for entry in log.entries if "loss" in entry]
    figures = {
        "backend": backend.name,
        "device": backend.device,
        "precision": backend.precision(config.train.precision),
        "steps": config.train.steps,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "records": len(sides["train"]),
        "tokens_seen": int(trainer.state.num_input_tokens_seen),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "held_out_loss_before": before,
        "held_out_loss_after": after,
        "seconds": round(time.monotonic() - started, 1),
        "resumed_at_step": resume.step if resume else 0,
        "base_commit": base.commit,
    }
    return Outcome([*outputs, folder.train_log, folder.loss_plot], figures)


def parameters(model: Any) -> tuple[int, int]:
    """Count a model's trainable and its total parameters; a 4-bit weight counts as the weights it stands for."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if type(parameter).__name__ == "Params4bit":
            count *= 2 * parameter.element_size()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def _save(model: Any, base: Path, template: str, eos: str, target: Path) -> None:
    """Write adapter and tokenizer as `save_pretrained` does; the tokenizer carries our chat template and EOS."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    if eos:
        tokenizer.eos_token = eos
    with writing_folder(target) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        _name_base(fresh / "adapter_config.json", base)


def _name_base(path: Path, base: Path) -> None:
    """Keep a cache path out of adapter_config.json: only its last part means something elsewhere."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("base_model_name_or_path") == str(base):
        values["base_model_name_or_path"] = base.name
        write_text(path, json.dumps(values, indent=2) + "\n")
