"""The language of the answers: found where it is sure, held against the prompt's, silent elsewhere."""

import csv
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toolkit.core.config import Config
from toolkit.core.config_file import build, load_config, starter
from toolkit.core.input_settings import PromptSettings
from toolkit.init import start
from toolkit.prepare import language
from toolkit.prepare.clean import Record, normalise, split_cell
from toolkit.prepare.language import (
    file_language,
    foreign_prompt,
    identifier,
    languages_said,
    several_languages,
    some_answers,
)
from toolkit.prompt.format import prompt_format
from toolkit.prompt.languages import NAMES, SENTENCES, asked_language, language_code, load_identifier
from toolkit.prompt.renderings import prompt_text
from toolkit.prompt.text_language import Identify, is_plain_english, language_shares, main_language

ANSWERS = {
    "en": [
        "Rest and drink a lot of water.",
        "See a doctor if the fever lasts for three days.",
        "Wash your hands often.",
    ],
    "pt": [
        "Descanse e beba bastante água.",
        "Procure um médico se a febre durar três dias.",
        "Lave as mãos com sabão.",
    ],
    "es": [
        "Descanse y beba mucha agua.",
        "Consulte a un médico si la fiebre dura tres días.",
        "Lávese las manos a menudo.",
    ],
    "fr": [
        "Reposez-vous et buvez beaucoup d'eau.",
        "Consultez un médecin si la fièvre persiste.",
        "Lavez-vous les mains.",
    ],
    "de": [
        "Ruhen Sie sich aus und trinken Sie viel.",
        "Gehen Sie bei hohem Fieber zum Arzt.",
        "Waschen Sie die Hände.",
    ],
    "it": [
        "Riposi e beva molta acqua ogni giorno.",
        "Consulti un medico se la febbre dura tre giorni.",
        "Si lavi le mani.",
    ],
    "nl": ["Rust uit en drink veel water.", "Ga naar de huisarts als de koorts aanhoudt.", "Was uw handen regelmatig."],
    "sv": [
        "Vila och drick mycket vatten.",
        "Sök läkare om febern varar i tre dagar.",
        "Tvätta händerna ofta och noga.",
    ],
    "ru": ["Отдыхайте и пейте много воды.", "Обратитесь к врачу, если температура держится три дня.", "Мойте руки."],
    "ja": ["水を十分に飲んで、ゆっくり休んでください。", "熱が三日以上続く場合は、医師に相談してください。"],
    "zh": ["多喝水，多休息，注意保暖。", "如果发烧持续三天以上，请及时就医。", "饭前便后要用肥皂洗手，保持卫生。"],
}
PORTUGUESE = "Explique ao paciente, de forma simples, o que ele quer saber, e não deixe nenhuma pergunta sem resposta."
UNSURE = {
    "yes and no": ["Yes", "No", "No", "Yes"] * 20,
    "drugs": ["Paracetamol 500 mg", "Ibuprofen 400 mg", "Amoxicillin 250 mg/5 ml", "Metformin 850 mg"] * 10,
    "codes": ["J45.0", "I10", "E11.9", "K21.0 / K21.9"] * 20,
    "Latin": ["Otitis media acuta", "Diabetes mellitus", "Staphylococcus aureus", "Morbus Crohn"] * 5,
    "numbers": ["12", "37.5", "120/80"] * 30,
    "half and half": [text for pair in zip(ANSWERS["pt"], ANSWERS["en"], strict=True) for text in pair] * 5,
    "three languages": [*ANSWERS["es"], *ANSWERS["de"], *ANSWERS["ru"]] * 3,
    "one short answer": ["Descanse."],
    "nothing": [],
}


@pytest.fixture(scope="module")
def identify() -> Iterator[Identify]:
    with identifier() as found:
        yield found


def records(answers: list[str], instruction: str = "Explain:") -> list[Record]:
    return [
        Record(str(n), n, n, instruction, f"question {n}", answer, normalise(f"question {n}"))
        for n, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("code", sorted(ANSWERS))
def test_the_language_of_a_few_answers_is_found(code: str, identify: Identify) -> None:
    assert main_language(ANSWERS[code] * 3, identify) == code


@pytest.mark.parametrize("kind", sorted(UNSURE))
def test_nothing_is_said_where_it_is_not_sure(kind: str, identify: Identify) -> None:
    language = main_language(UNSURE[kind], identify)
    assert language == ""
    assert foreign_prompt(PromptSettings(), records(UNSURE[kind]), language, identify) == ""


def test_a_few_foreign_answers_change_nothing(identify: Identify) -> None:
    assert main_language(ANSWERS["de"] * 10 + ANSWERS["en"], identify) == "de"


LEARNED = "Laat je niet gek maken: van is in of the name zijn geen Engels, en rust helpt het beste bij koorts."
LOOKING_ENGLISH = {
    "Dutch with English words": [LEARNED] * 12,
    "names of drugs": [f"the {name} 500 mg" for name in ("Paracetamol", "Amoxicillin", "Ibuprofen")] * 2
    + UNSURE["drugs"],
    "one in four is German": [*ANSWERS["en"], ANSWERS["de"][0]] * 8,
}


@pytest.mark.parametrize("kind", [*(code for code in ANSWERS if code != "en"), *UNSURE, *LOOKING_ENGLISH])
def test_only_plain_english_is_known_by_its_words(kind: str) -> None:
    texts = {**ANSWERS, **UNSURE, **LOOKING_ENGLISH}[kind] * 3
    assert not is_plain_english([text for text in texts if len(text) > 20])


def test_for_plain_english_no_model_is_loaded(monkeypatch: pytest.MonkeyPatch, medquad: Path) -> None:
    """It takes a quarter of `prepare`. What asks for another language later still gets it."""
    loaded: list[str] = []
    real = load_identifier

    def load() -> Any:
        loaded.append("model")
        return real()

    monkeypatch.setattr(language, "load_identifier", load)
    with medquad.open(encoding="utf-8", newline="") as file:
        cells = [split_cell(row["Answer"]) for row in csv.DictReader(file)]
    for answers in (ANSWERS["en"] * 3, [cell[1] for cell in cells if not isinstance(cell, str)]):
        with identifier(answers) as identify:
            assert main_language(answers, identify) == "en" and not loaded
    with identifier(answers) as identify:
        form = PromptSettings(preset="chatml", instruction=PORTUGUESE)
        assert "the prompt is in Portuguese" in foreign_prompt(form, records(["x"], PORTUGUESE), "en", identify)
    assert loaded
    with identifier(ANSWERS["fr"] * 3) as identify:
        assert main_language(ANSWERS["fr"] * 3, identify) == "fr"


def test_medquad_is_english(medquad: Path, identify: Identify) -> None:
    with medquad.open(encoding="utf-8", newline="") as file:
        cells = [split_cell(row["Answer"]) for row in csv.DictReader(file)]
    answers = [cell[1] for cell in cells if not isinstance(cell, str)]
    assert len(answers) == 2479
    assert main_language(answers, identify) == "en"
    assert foreign_prompt(PromptSettings(), records(answers), "en", identify) == ""
    assert "prompt.language=English" in foreign_prompt(
        PromptSettings(language="pt-BR"), records(answers), "en", identify
    )


@pytest.mark.parametrize(
    ("settings", "language", "advised"),
    [
        ({}, "pt", "--set prompt.language=Portuguese --set prompt.instruction=Explique:`"),
        ({}, "sv", "--set prompt.language=Swedish --set 'prompt.instruction=TEXT IN SWEDISH'`"),
        ({"preset": "alpaca-no-input"}, "es", "--set prompt.language=Spanish`"),
        ({"language": "pt-BR"}, "es", "--set prompt.language=Spanish "),
        ({"language": "Brazilian Portuguese"}, "pt", ""),
        ({"language": "português"}, "pt", ""),
        ({"language": ""}, "pt", ""),
        ({"language": "the patient's language"}, "pt", ""),
        ({"preset": "chatml"}, "fr", "--set 'prompt.instruction=Expliquez :'`"),
        ({"preset": "chatml", "instruction": PORTUGUESE}, "pt", ""),
        ({"preset": "chatml", "instruction": PORTUGUESE}, "en", "Explain:"),
        ({"preset": "llama3", "instruction": ""}, "de", ""),
        ({"instruction": "Responda em português do Brasil como um médico."}, "en", "the instruction asks for"),
        ({"preset": "chatml", "instruction": "Answer in pt-BR."}, "en", "--set prompt.instruction=Explain:`"),
        ({"preset": "llama3", "instruction": "Write in simple German for patients."}, "en", "in German: `--set prompt"),
        ({"preset": "chatml", "instruction": "Answer in Spanish."}, "es", ""),
        ({"preset": "chatml", "instruction": "Answer in English or in French."}, "en", ""),
        ({"preset": "chatml", "instruction": "Answer in no more than two sentences, as in it is."}, "en", ""),
        ({"preset": "custom", "user_turn": "Answer the question of the patient.\n{instruction}\n{input}\n"}, "it",
         "write prompt.prefix, prompt.user_turn and prompt.instruction in Italian"),
        ({"preset": "custom", "user_turn": "<|u|>{instruction}\n{input}<|e|>"}, "nl", "'prompt.instruction=Leg uit:'"),
    ],
)  # fmt: skip
def test_a_prompt_in_another_language(
    settings: dict[str, str], language: str, advised: str, identify: Identify
) -> None:
    form = PromptSettings.model_validate(settings)
    said = foreign_prompt(form, records(["x"], form.instruction), language, identify)
    assert advised in said
    assert bool(said) is bool(advised)


@pytest.mark.parametrize(
    ("settings", "shares", "said"),
    [
        ({}, {"en": 0.6, "pt": 0.4}, "are in English and Portuguese, but the prompt asks for English alone"),
        ({"preset": "alpaca-no-input"}, {"pt": 0.5, "es": 0.5}, "in Portuguese and Spanish"),
        ({"language": ""}, {"en": 0.6, "pt": 0.4}, ""),
        ({}, {"en": 0.85, "pt": 0.15}, ""),
        ({}, {"en": 0.6, "und": 0.4}, ""),
        ({"preset": "chatml"}, {"en": 0.5, "pt": 0.5}, ""),
        ({}, {}, ""),
    ],
)  # fmt: skip
def test_answers_in_several_languages(settings: dict[str, str], shares: dict[str, float], said: str) -> None:
    found = several_languages(PromptSettings.model_validate(settings), shares)
    assert said in found and bool(found) is bool(said)
    assert not found or found.endswith("`--set prompt.language=` asks for none")


def test_a_second_language_is_said_where_it_is_not_rare() -> None:
    assert languages_said({"en": 0.9, "pt": 0.1}) == "languages of the answers: English 90%, Portuguese 10%"
    assert languages_said({"en": 0.9, "und": 0.1}) == "" == languages_said({"en": 0.97, "pt": 0.03})


def test_an_instruction_that_no_record_uses_is_not_spoken_of(identify: Identify) -> None:
    own = records(["x"], "Explique de forma simples:")
    assert foreign_prompt(PromptSettings(preset="chatml"), own, "pt", identify) == ""
    assert "prompt.instruction" not in foreign_prompt(PromptSettings(), own, "pt", identify)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("English", "en"), ("german", "de"), ("Deutsch", "de"), ("pt-BR", "pt"), ("zh_Hans", "zh"), (" fr ", "fr"),
        ("Mexican Spanish", "es"), ("simple English", "en"), ("中文", "zh"), ("English or French", ""), ("", ""),
        ("Klingon", ""), ("xx-YY", ""), ("bahasa indonesia", "id"),
    ],
)  # fmt: skip
def test_names_of_languages(text: str, code: str) -> None:
    assert language_code(text) == code


@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        ("Answer in German.", "de"), ("Answer in simple German", "de"), ("Responda em português", "pt"),
        ("Reply in pt-BR.", "pt"), ("Answer in detail.", ""), ("Explique em detalhes:", ""), ("Put it into words", ""),
        ("Answer in German or in French", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_language_that_an_instruction_asks_for(instruction: str, code: str) -> None:
    assert asked_language(instruction) == code


@pytest.mark.parametrize("code", sorted(NAMES))
def test_each_language_is_known_by_its_names(code: str) -> None:
    assert {language_code(name) for name in (*NAMES[code], code)} == {code}


def csv_file(path: Path, answers: list[str]) -> Path:
    rows = "".join(f'question {n},"{answer}"\n' for n, answer in enumerate(answers))
    path.write_text(f"question,answer\n{rows}", encoding="utf-8")
    return path


@pytest.mark.parametrize("code", ["de", "pt", "sv"])
def test_thoughts_do_not_count_as_the_language_of_an_answer(code: str, tmp_path: Path, identify: Identify) -> None:
    thoughts = f"<think>{' '.join(ANSWERS['en'] * 4)}</think>"
    thinking = [f"{thoughts}\n\n{answer}" for answer in ANSWERS[code] * 4]
    assert file_language(csv_file(tmp_path / "mine.csv", thinking)) == code
    shares = language_shares(some_answers(records(thinking)), identify)
    assert "en" not in shares and shares == language_shares(ANSWERS[code] * 4, identify)


@pytest.mark.parametrize("code", [*SENTENCES, "en", "sv", ""])
def test_init_takes_the_language_from_the_data(code: str, tmp_path: Path, identify: Identify) -> None:
    answers = ANSWERS[code] * 4 if code else UNSURE["half and half"]
    source = csv_file(tmp_path / "mine.csv", answers)
    language = file_language(source)
    assert language == code
    written = start(tmp_path / "new", dry_run=False, force=False, data=source, language=language)
    assert written == [tmp_path / "new/toolkit.toml"]
    config = load_config(written[0])
    assert config.data.source == str(source)
    assert foreign_prompt(config.prompt, records(answers, config.prompt.instruction), language, identify) == ""
    if code in SENTENCES:
        text = prompt_text(prompt_format(config.prompt), "{input}")
        own = SENTENCES[code]
        assert text.startswith(own.preamble) and own.instruction in text
        # All that it says is in that language, as py3langid reads it.
        assert identify(text)[0] == code and identify(text)[1] > 0.9
        assert main_language([*config.validation.questions, config.validation.instruction], identify) == code
        assert all(stop in text for stop in config.prompt.stops) and len(config.prompt.stops) == 3
    else:
        assert config.prompt == Config().prompt.model_copy(update={"language": "Swedish"} if code == "sv" else {})
        assert config.validation == Config().validation


def test_a_data_file_in_the_folder_is_named_from_there(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = csv_file(tmp_path / "data/mine.csv", ANSWERS["en"])
    assert load_config(start(tmp_path, dry_run=False, force=False, data=source)[0]).data.source == "data/mine.csv"
    assert not (tmp_path / "data/sample.csv").exists()


def test_the_starter_with_sentences_is_a_settings_file() -> None:
    for code, sentences in SENTENCES.items():
        text = starter({"prompt": sentences.prompt(), "validate": sentences.validation()})
        prompt = build(tomllib.loads(text)).prompt
        assert prompt.instruction == sentences.instruction, code


@pytest.mark.parametrize("names", ["Frage;Antwort", "pergunta;resposta"])
def test_columns_that_are_not_known_are_told_with_what_to_do(
    tmp_path: Path, names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`init` goes on without the language; what `prepare` will want is said at once."""
    source = tmp_path / "faq.csv"
    source.write_text(f"{names}\nWas tun bei Fieber?;Trinken Sie viel.\n", encoding="utf-8")
    assert file_language(source) == ""
    said = " ".join(capsys.readouterr().err.split())
    assert "has no column with the" in said and "`toolkit prepare` will stop there: " in said
    assert "--set data." in said and "_column=" in said
