"""Settings: defaults are the recipe, problems come all at once, the starter file round-trips."""

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.places import REPOSITORY
from tests.support.settings import problems
from toolkit.core import config, config_file, output_settings, train_settings
from toolkit.core.errors import USAGE, ToolkitError

EXAMPLES = REPOSITORY / "examples"


def test_defaults_are_the_recipe() -> None:
    settings = config_file.build({})
    train = settings.train
    assert settings.model.base == "unsloth/Meta-Llama-3.1-8B-bnb-4bit"
    assert (train.batch_size, train.gradient_accumulation_steps, train.warmup_steps) == (2, 4, 5)
    assert (train.max_steps, train.num_train_epochs) == (None, 1.0)  # all records, where the recipe has 60 steps
    assert (train.learning_rate, train.lr_scheduler_type, train.weight_decay, train.seed) == (
        2e-4,
        "linear",
        0.01,
        3407,
    )
    assert (train.lora_r, train.lora_alpha, train.lora_dropout, train.max_length) == (16, 16, 0.0, 2048)
    assert train.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert settings.data.seed == 42
    assert settings.validation.bound("F16") == 1e-4
    assert settings.validation.bound("Q8_0") == 0.02
    assert settings.validation.bound("Q4_K_M") == settings.validation.bound("IQ4_XS") == 0.25


@pytest.mark.parametrize("rows", ["auto", 1, 50])
def test_rows_are_automatic_or_a_number(rows: Any) -> None:
    assert config_file.build({"validate": {"rows": rows}}).validation.rows == rows


@pytest.mark.parametrize("rows", [0, -3, 2.5, True, "all", "50", [], None])
def test_other_rows_are_one_problem(rows: Any) -> None:
    with pytest.raises(ToolkitError) as caught:
        config_file.build({"validate": {"rows": rows}})
    assert caught.value.message.count("validate.rows") == 1
    assert 'write "auto" or a whole number of rows from 1 on' in caught.value.message


def test_every_quantization_has_a_bound_of_its_class_and_coarser_ones_have_wider_ones() -> None:
    bounds = {name: config_file.build({}).validation.bound(name) for name in output_settings.QUANTIZATIONS}
    assert [bounds[name] for name in ("F32", "F16", "BF16")] == [1e-6, 1e-4, 2e-3]
    assert [bounds[name] for name in ("Q8_0", "Q6_K", "Q5_K_S", "Q5_1")] == [0.02, 0.05, 0.1, 0.1]
    assert [bounds[name] for name in ("Q4_0", "IQ4_NL", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M")] == [
        0.25, 0.25, 0.5, 0.5, 1.0, 1.0,
    ]  # fmt: skip


def test_bounds_are_set_by_name_by_bits_or_for_all_the_rest() -> None:
    def bounds(**given: float) -> list[float]:
        settings = config_file.build({"validate": {"max_kl": given}}).validation
        again = config_file.build(
            {"validate": {"max_kl": settings.max_kl}}
        ).validation  # as the run's config.toml has it
        names = ("Q8_0", "Q6_K", "Q4_K_M", "Q2_K")
        assert [settings.bound(name) for name in names] == [again.bound(name) for name in names]
        return [settings.bound(name) for name in names]

    assert bounds(Q4=0.3, Q2_K=2.0) == [0.02, 0.05, 0.3, 2.0]
    assert bounds(K=0.7, Q4_K_M=0.1) == [0.02, 0.7, 0.1, 0.7]
    assert bounds(K=0.7, Q6=0.2) == [0.02, 0.2, 0.7, 0.7]
    for wrong in ({"Q9": 1.0}, {"Q4": 0.0}):
        assert next(iter(wrong)) in problems({"validate": {"max_kl": wrong}})


def test_all_problems_are_reported_at_once() -> None:
    text = problems(
        {
            "train": {"lora_rank": 8, "max_steps": -1, "learning_rate": "2e-4"},
            "dta": {},
            "export": {"quantizations": ["Q4_K_L"]},
            "run": {"name": "a/b"},
        }
    )
    assert '"lora_r"' in text  # did you mean
    assert "train.max_steps" in text and "-1" in text
    assert "train.learning_rate" in text
    assert "did you mean [data]" in text
    assert "Q4_K_L" in text and "Q4_K_M" in text
    assert "run.name" in text


def length(**train: object) -> train_settings.TrainSettings:
    return config_file.build({"train": train}).train


@pytest.mark.parametrize(
    ("epochs", "records", "steps"),
    [
        (1, 80, 10),
        (1, 81, 11),
        (3.0, 1736, 651),
        (0.5, 80, 5),
        (0.51, 80, 6),
        (0.7, 80, 7),
        (0.001, 80, 1),
        (1.1, 80, 11),
    ],
)
def test_epochs_are_rounded_up_to_whole_steps(epochs: float, records: int, steps: int) -> None:
    assert length(num_train_epochs=epochs).steps_for(records) == steps
    assert length(max_steps=7).steps_for(records) == 7


@pytest.mark.parametrize("epochs", [0, -1.0, float("inf"), float("nan"), "1"])
def test_epochs_are_a_number_above_nothing(epochs: object) -> None:
    assert "train.num_train_epochs" in problems({"train": {"num_train_epochs": epochs}})


def test_steps_and_epochs_are_not_both_set() -> None:
    both = problems({"train": {"max_steps": 60, "num_train_epochs": 1.0}})
    assert "max_steps and num_train_epochs are both set" in both


@pytest.mark.parametrize("train", [{}, {"max_steps": 5}, {"num_train_epochs": 1.5}])
def test_settings_with_either_length_can_be_written_and_read_again(train: dict[str, Any]) -> None:
    """As JSON for the process that trains, and as the run's config.toml."""
    settings = config_file.build({"train": train})
    again = config.Config.model_validate_json(settings.model_dump_json(by_alias=True))
    text = config_file.starter({"train": settings.section("train")})
    assert again == settings == config_file.build(tomllib.loads(text))
    assert {"max_steps", "num_train_epochs"} & {*settings.section("train")} == {*train} or not train
    assert ("#num_train_epochs = 1.0" in text) != ("#max_steps = 60" in text)


def test_a_key_of_another_section_is_pointed_there() -> None:
    assert "it belongs under [train]" in problems({"model": {"learning_rate": 1e-4}})


def test_the_default_quantization_must_be_written() -> None:
    assert "Q4_K_M" in problems({"export": {"quantizations": ["F16"]}})


def test_two_quantizations_are_written_and_one_of_them_served() -> None:
    settings = config_file.build({})
    assert settings.export.quantizations == ["Q8_0", "Q4_K_M"] and settings.served == ["Q4_K_M"]


@pytest.mark.parametrize(
    ("tags", "served"),
    [
        ([], ["Q4_K_M"]),
        (["q8_0"], ["Q8_0", "Q4_K_M"]),
        (["F16", "f16", "Q4_K_M"], ["F16", "Q4_K_M"]),
        ("all", ["F16", "Q8_0", "Q4_K_M"]),
        (["ALL", "Q8_0"], ["F16", "Q8_0", "Q4_K_M"]),
    ],
)
def test_further_tags_in_ollama_are_asked_for(tags: list[str] | str, served: list[str]) -> None:
    written = {"quantizations": ["F16", "Q8_0", "Q4_K_M"]}
    assert config_file.build({"export": written, "ollama": {"tags": tags}}).served == served
    override = tags if isinstance(tags, str) else ",".join(tags)
    assert config_file.build({"export": written}, [f"ollama.tags={override}"]).served == served


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("export.stream_base=yes", "export.stream_base: input should be 'auto', True or False, got \"yes\""),
        ("export.stream_base=2", "export.stream_base: input should be 'auto', True or False, got 2"),
        (
            "export.imatrix=true",
            "export: stream_base = true keeps nothing of the base, which imatrix = true reads twice",
        ),
    ],
)
def test_how_a_base_is_read_is_checked(override: str, said: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        config_file.build({}, ["export.stream_base=true", override])
    assert said in caught.value.message and "1 problem in" in caught.value.message


@pytest.mark.parametrize(
    ("tags", "said"), [(["F16"], "not among export.quantizations: Q8_0, Q4_K_M"), (["Q9"], 'quantization "Q9"')]
)
def test_a_tag_without_a_file_is_refused(tags: list[str], said: str) -> None:
    assert said in problems({"ollama": {"tags": tags}})


@pytest.mark.parametrize("name", ["Med Assist", "med:latest", "-med", "a/b/c/d", "", "é"])
def test_model_names_that_ollama_refuses(name: str) -> None:
    if name:
        assert "ollama.name" in problems({"ollama": {"name": name}})
    else:
        config_file.build({"ollama": {"name": name}})


@pytest.mark.parametrize("name", ["medassist", "user/med_assist-1.0", "host.example:5000/user/med"])
def test_model_names_that_ollama_takes(name: str) -> None:
    assert output_settings.check_model_name(name) == name


def test_overrides_win_and_take_toml_text_and_lists() -> None:
    settings = config_file.build(
        {"train": {"max_steps": 5}},
        [
            "train.max_steps=100",
            "train.learning_rate=1e-4",
            "data.source=my data.csv",
            'run.name="quoted"',
            "export.quantizations=q8_0, F16",
            "export.default=Q8_0",
            "train.completion_only_loss=false",
            "prompt.language=",
        ],
    )
    assert settings.train.max_steps == 100
    assert settings.train.learning_rate == 1e-4
    assert settings.data.source == "my data.csv"
    assert settings.run.name == "quoted"
    assert settings.export.quantizations == ["Q8_0", "F16"]
    assert settings.train.completion_only_loss is False
    assert settings.prompt.language == ""


@pytest.mark.parametrize("override", ["steps=1", "train.steps", "=1", "train.=1"])
def test_a_broken_override_says_how_to_write_it(override: str) -> None:
    assert "section.key=value" in problems({}, override)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (r'source = "C:\data\faq.csv"', "use single ones"),
        (r'source = "C:\Users\me\faq.csv"', "use single ones"),
        ('source = "a"\nsource = "b"', "it is there twice"),
        ('source = "a"\n[data]', "it is there twice"),
        ("source = faq.csv", "straight quotes"),
        ("source = \u201cfaq.csv\u201d", "straight quotes"),
    ],
)
def test_the_hint_fits_what_is_no_toml(tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "toolkit.toml"
    path.write_text(f"[data]\n{text}\n", encoding="utf-8")
    with pytest.raises(ToolkitError, match="is not valid TOML") as caught:
        config_file.load_config(path, ())
    assert hint in caught.value.hint and caught.value.exit_code == 2
    path.write_text("[data]\nsource = 'C:\\data\\faq.csv'\n", encoding="utf-8")
    assert config_file.load_config(path, ()).data.source == "C:\\data\\faq.csv"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "learning_rate", math.inf),
        ("train", "weight_decay", math.inf),
        ("ollama", "timeout", math.inf),
        ("ollama", "temperature", math.nan),
        ("validate", "max_kl", {"Q4": math.inf}),
    ],
)
def test_a_number_that_no_file_can_keep_is_refused(section: str, key: str, value: object) -> None:
    """From Python; a file and `--set` are refused one while they are read."""
    assert f"{section}.{key}" in problems({section: {key: value}})


def test_starter_round_trips_and_explains_every_key() -> None:
    text = config_file.starter()
    assert config_file.build(tomllib.loads(text)) == config_file.build({})
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if " = " in line and not line.startswith("#"):
            assert lines[index - 1].startswith("# "), f"no explanation above {line}"


@pytest.mark.slow
@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\t\n\r")),
    st.floats(0.01, 10),
    st.lists(st.text(min_size=1), min_size=1),
)
def test_starter_round_trips_any_text(text: str, number: float, questions: list[str]) -> None:
    given_values: dict[str, dict[str, Any]] = {
        "prompt": {"language": text},
        "ollama": {"temperature": number},
        "validate": {"questions": questions},
    }
    again = config_file.build(tomllib.loads(config_file.starter(given_values)))
    assert again.prompt.language == text
    assert again.ollama.temperature == number
    assert again.validation.questions == questions


@pytest.mark.parametrize("name", ["quickstart", "medassist"])
def test_examples_parse(name: str) -> None:
    settings = config_file.load_config(EXAMPLES / f"{name}.toml")
    assert settings.run.name == name


def test_medassist_example_is_the_recipe() -> None:
    """All but the recipe's 60 steps is the default."""
    example = config_file.load_config(EXAMPLES / "medassist.toml")
    recipe = config_file.build({"train": {"max_steps": 60}})
    assert example.model_copy(update={"model": recipe.model}) == recipe
    assert example.model.base == recipe.model.base


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[train]\nsteps = = 1\n", "not valid TOML"), (b"\xff\xfe[train]", "not UTF-8"), (None, "no settings file")],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "toolkit.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ToolkitError, match=said) as caught:
        config_file.load_config(path, ())
    assert caught.value.exit_code == USAGE
    assert str(path) in caught.value.message


def test_types_of_single_tensors_are_checked() -> None:
    settings = config_file.build({"export": {"overrides": {"output.weight": "q8_0", r"blk\.0\.": "Q6_K"}}})
    assert settings.export.overrides == {"output.weight": "Q8_0", r"blk\.0\.": "Q6_K"}
    for overrides, words in (({"[": "Q8_0"}, "not a regular expression"), ({"output": "Q4_K_M"}, "unknown type")):
        with pytest.raises(ToolkitError, match=words):
            config_file.build({"export": {"overrides": overrides}})


def test_patterns_survive_being_written(tmp_path: Path) -> None:
    overrides = {r"blk\.0\.": "Q6_K", "output.weight": "Q8_0"}
    (tmp_path / "toolkit.toml").write_text(config_file.starter({"export": {"overrides": overrides}}))
    assert config_file.load_config(tmp_path / "toolkit.toml").export.overrides == overrides


@pytest.mark.parametrize("key", ["model.base", "model.base_16bit", "data.source", "run.folder"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a" * 5000, "5,000 bytes"),
        ("x/" + "é" * 200, "400 bytes"),
        ("pypi:" + "a" * 300, "305 bytes"),
        ("/".join(["ab"] * 2000), "a path has 4,095 at most"),
    ],
)
def test_a_name_that_no_file_has_is_refused_in_one_short_line(key: str, value: str, said: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        config_file.build({}, [f"{key}={value}"])
    assert key in caught.value.message and said in caught.value.message and len(caught.value.message) < 300
    assert caught.value.exit_code == USAGE


def test_a_name_of_255_bytes_is_one() -> None:
    assert config_file.build({}, [f"model.base={'a' * 255}/{'b' * 255}"]).model.base.endswith("b")


def test_the_last_turns_cannot_be_chosen_where_the_whole_text_is_learned() -> None:
    said = problems({}, "train.turns=last", "train.completion_only_loss=false")
    assert 'turns = "last" learns last answers alone' in said
    assert config_file.build({}, ["train.turns=last"]).train.turns == "last"
