"""Other names of settings: former ones are taken with a warning, those of other tools are answered with ours."""

from typing import Any

import pytest

from tests.support.settings import problems
from toolkit.core import aliases, config_file
from toolkit.core.config import SECTIONS

# Former name, a value of it, and the present name.
FORMER = [
    ("data.too_long", "drop", "on_too_long"),
    ("prompt.start", "<s>{instruction}", "prefix"),
    ("prompt.turn", "{input}", "user_turn"),
    ("prompt.after", "\n", "suffix"),
    ("train.steps", 7, "max_steps"),
    ("train.accumulation", 3, "gradient_accumulation_steps"),
    ("train.scheduler", "cosine", "lr_scheduler_type"),
    ("train.optimizer", "sgd", "optim"),
    ("train.lora_targets", ["q_proj", "v_proj"], "target_modules"),
    ("train.rslora", True, "use_rslora"),
    ("train.completion_only", False, "completion_only_loss"),
    ("train.early_stopping", 2, "early_stopping_patience"),
]
# A name of other tools under a section, and what is answered.
ANSWERED = [
    ("train.lr", 'did you mean "learning_rate"?'),
    ("train.r", 'did you mean "lora_r"?'),
    ("train.lora_rank", 'did you mean "lora_r"?'),
    ("train.alpha", 'did you mean "lora_alpha"?'),
    ("train.lora_target_modules", 'did you mean "target_modules"?'),
    ("train.per_device_train_batch_size", 'did you mean "batch_size"?'),
    ("train.micro_batch_size", 'did you mean "batch_size"?'),
    ("train.epochs", 'did you mean "num_train_epochs"?'),
    ("train.max_seq_length", 'did you mean "max_length"?'),
    ("train.cutoff_len", 'did you mean "max_length"?'),
    ("train.sequence_len", 'did you mean "max_length"?'),
    ("train.mask_history", 'did you mean "turns"?'),
    ("train.assistant_only_loss", 'did you mean "completion_only_loss"?'),
    ("train.bf16", 'did you mean "precision"?'),
    ("train.fp16", 'did you mean "precision"?'),
    ("train.output_dir", 'did you mean "folder" under [run]?'),
    ("train.dataset", 'did you mean "source" under [data]?'),
    ("data.dataset", 'did you mean "source"?'),
    ("train.model_name_or_path", 'did you mean "base" under [model]?'),
    ("model.base_model", 'did you mean "base"?'),
    # Not in the table: a name of another section, and names that are near a field's.
    ("train.load_in_4bit", "it belongs under [model]"),
    ("train.max_stps", 'did you mean "max_steps"?'),
    ("model.rivision", 'did you mean "revision"?'),
]


def needed(key: str) -> dict[str, dict[str, Any]]:
    """What must stand beside a setting for the whole to be sound."""
    custom = {"preset": "custom", "prefix": "{instruction}", "user_turn": "{input}"}
    own = {"prompt.start": "prefix", "prompt.turn": "user_turn"}.get(key)
    if key.startswith("prompt."):
        return {"prompt": {name: value for name, value in custom.items() if name != own}}
    return {"train": {"eval_steps": 1}}


@pytest.mark.parametrize("way", ["file", "--set"])
@pytest.mark.parametrize(("key", "value", "present"), FORMER)
def test_a_former_name_is_taken_with_one_line_that_names_the_present_one(
    way: str, key: str, value: object, present: str, capfd: pytest.CaptureFixture[str]
) -> None:
    section, _, former = key.partition(".")
    values = needed(key)
    text = ",".join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)
    if way == "file":
        values.setdefault(section, {})[former] = value
    overrides = [f'{key}="\\n"' if text == "\n" else f"{key}={text}"] if way == "--set" else []
    settings = config_file.build(values, overrides)
    assert getattr(getattr(settings, section), present) == value
    said = " ".join(capfd.readouterr().err.split())
    assert said == f"warning: {key} is {section}.{present} now; the next release refuses the old name"


def test_several_former_names_make_one_warning(capfd: pytest.CaptureFixture[str]) -> None:
    settings = config_file.build({"train": {"steps": 7, "rslora": True}}, ["train.steps=8"])
    assert (settings.train.max_steps, settings.train.use_rslora) == (8, True)
    said = capfd.readouterr().err
    assert said.count("warning") == 1 and said.count("train.max_steps") == 1 and "train.use_rslora" in said


@pytest.mark.parametrize(("key", "value", "present"), FORMER)
def test_a_former_name_beside_the_present_one_is_an_error(key: str, value: object, present: str) -> None:
    section, _, former = key.partition(".")
    assert f"{key}: is called {present} now, and both are given" in problems({section: {former: value, present: value}})


def test_both_names_in_overrides_are_an_error_and_one_replaces_the_file_s() -> None:
    assert "both are given" in problems({}, "train.steps=1", "train.max_steps=2")
    assert config_file.build({"train": {"steps": 1}}, ["train.max_steps=2"]).train.max_steps == 2
    assert config_file.build({"train": {"max_steps": 1}}, ["train.steps=2"]).train.max_steps == 2


def test_an_override_replaces_the_other_length_of_the_file() -> None:
    """`toolkit init` writes num_train_epochs, so else --set could not ask for steps."""
    epochs = config_file.build({"train": {"max_steps": 60}}, ["train.num_train_epochs=2"]).train
    steps = config_file.build({"train": {"num_train_epochs": 2}}, ["train.max_steps=60"]).train
    assert (epochs.num_train_epochs, epochs.max_steps, steps.max_steps) == (2, None, 60)
    assert "both set" in problems({}, "train.num_train_epochs=2", "train.max_steps=60")


@pytest.mark.parametrize(("key", "answer"), ANSWERED)
def test_a_name_of_other_tools_is_answered_with_ours(key: str, answer: str) -> None:
    section, _, name = key.partition(".")
    assert f"{key}: unknown key; {answer}" in problems({section: {name: 1}})
    assert f"{key}: unknown key; {answer}" in problems({}, f"{key}=1")


def test_a_name_of_other_tools_above_all_sections_is_answered_too() -> None:
    assert 'lr: unknown key; did you mean "learning_rate" under [train]?' in problems({"lr": 1e-4})


def test_the_lists_above_are_the_whole_tables_and_every_answer_is_a_setting() -> None:
    listed = {(key, present) for key, _, present in FORMER}
    assert listed == {(f"{s}.{old}", new) for s, names in aliases.FORMER.items() for old, new in names.items()}
    assert {key.partition(".")[2] for key, _ in ANSWERED} >= set(aliases.FOREIGN)
    for section, key in (target.split(".") for target in aliases.FOREIGN.values()):
        assert key in SECTIONS[section].model_fields
    for section, names in aliases.FORMER.items():
        assert {*names.values()} <= {*SECTIONS[section].model_fields} and not {*names} & {
            *SECTIONS[section].model_fields
        }
