"""Other names of settings: former names, still accepted, and names from other tools, which errors translate."""

from typing import Any

# By section, former name → present one; accepted for one release, with a warning.
FORMER = {
    "data": {"too_long": "on_too_long"},
    "prompt": {"start": "prefix", "turn": "user_turn", "after": "suffix"},
    "train": {
        "steps": "max_steps",
        "accumulation": "gradient_accumulation_steps",
        "scheduler": "lr_scheduler_type",
        "optimizer": "optim",
        "lora_targets": "target_modules",
        "rslora": "use_rslora",
        "completion_only": "completion_only_loss",
        "early_stopping": "early_stopping_patience",
    },
}
# Names in transformers, PEFT, Unsloth, Axolotl and LLaMA-Factory → section and key here; an error names the latter.
FOREIGN = {
    "lr": "train.learning_rate",
    "r": "train.lora_r",
    "lora_rank": "train.lora_r",
    "alpha": "train.lora_alpha",
    "lora_target_modules": "train.target_modules",
    "per_device_train_batch_size": "train.batch_size",
    "micro_batch_size": "train.batch_size",
    "epochs": "train.num_train_epochs",
    "max_seq_length": "train.max_length",
    "cutoff_len": "train.max_length",
    "mask_history": "train.turns",
    "assistant_only_loss": "train.completion_only_loss",
    "sequence_len": "train.max_length",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "output_dir": "run.folder",
    "dataset": "data.source",
    "model_name_or_path": "model.base",
    "base_model": "model.base",
}


def present_key(key: str) -> str:
    """Return the present name of a setting `section.key`, which may have a former one."""
    section, dot, name = key.partition(".")
    return f"{section}{dot}{FORMER.get(section, {}).get(name, name)}"


def rename(values: dict[str, Any], problems: list[str]) -> list[str]:
    """Give former names in parsed settings their present ones, and return what was renamed, in words.

    A setting that is given by both names is added to the problems.
    """
    renamed = []
    for section, names in FORMER.items():
        table = values.get(section)
        if not isinstance(table, dict):
            continue
        for former in names.keys() & table.keys():
            present, value = names[former], table.pop(former)
            if present in table:
                problems.append(f"{section}.{former}: is called {present} now, and both are given")
                continue
            table[present] = value
            renamed.append(f"{section}.{former} is {section}.{present} now")
    return sorted(renamed)
