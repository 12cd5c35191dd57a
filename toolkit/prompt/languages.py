"""Languages by name and code, and the sentences of a prompt in the commonest of them."""

import functools
import re
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.files import naming

# ISO 639-1 code → English name, own name.
NAMES = {
    "en": ("English", "english"),
    "es": ("Spanish", "español"),
    "pt": ("Portuguese", "português"),
    "fr": ("French", "français"),
    "de": ("German", "deutsch"),
    "it": ("Italian", "italiano"),
    "nl": ("Dutch", "nederlands"),
    "ca": ("Catalan", "català"),
    "gl": ("Galician", "galego"),
    "eu": ("Basque", "euskara"),
    "ro": ("Romanian", "română"),
    "pl": ("Polish", "polski"),
    "cs": ("Czech", "čeština"),
    "sk": ("Slovak", "slovenčina"),
    "sl": ("Slovenian", "slovenščina"),
    "hr": ("Croatian", "hrvatski"),
    "sr": ("Serbian", "српски"),
    "bs": ("Bosnian", "bosanski"),
    "bg": ("Bulgarian", "български"),
    "el": ("Greek", "ελληνικά"),
    "hu": ("Hungarian", "magyar"),
    "sv": ("Swedish", "svenska"),
    "da": ("Danish", "dansk"),
    "no": ("Norwegian", "norsk"),
    "fi": ("Finnish", "suomi"),
    "is": ("Icelandic", "íslenska"),
    "et": ("Estonian", "eesti"),
    "lv": ("Latvian", "latviešu"),
    "lt": ("Lithuanian", "lietuvių"),
    "ru": ("Russian", "русский"),
    "uk": ("Ukrainian", "українська"),
    "tr": ("Turkish", "türkçe"),
    "ar": ("Arabic", "العربية"),
    "fa": ("Persian", "فارسی"),
    "he": ("Hebrew", "עברית"),
    "hi": ("Hindi", "हिन्दी"),
    "bn": ("Bengali", "বাংলা"),
    "ur": ("Urdu", "اردو"),
    "ta": ("Tamil", "தமிழ்"),
    "te": ("Telugu", "తెలుగు"),
    "mr": ("Marathi", "मराठी"),
    "th": ("Thai", "ไทย"),
    "vi": ("Vietnamese", "tiếng việt"),
    "id": ("Indonesian", "bahasa indonesia"),
    "ms": ("Malay", "bahasa melayu"),
    "tl": ("Tagalog", "filipino"),
    "zh": ("Chinese", "中文"),
    "ja": ("Japanese", "日本語"),
    "ko": ("Korean", "한국어"),
    "sw": ("Swahili", "kiswahili"),
    "af": ("Afrikaans", "afrikaans"),
}
# Languages that a detector mixes up, or that one name means.
_RELATED = (
    {"no", "nn", "nb", "da"},
    {"hr", "bs", "sr"},
    {"id", "ms"},
    {"pt", "gl"},
    {"zh", "yue", "wuu"},
    {"hi", "mr"},
    {"en", "pcm"},
)
# What stands behind `in`, and the word after that; a name has four letters at least, a code its region.
_WORD = r"[^\W\d_]{4,}"
_ASKED = re.compile(
    rf"(?i:\b(?:in|into|em|en|auf|in het|på)\s+)(?=({_WORD}|[a-z]{{2}}[-_][A-Z]{{2}}\b))"
    rf"[\w-]+(?=(?:\s+({_WORD}))?)"
)


def language_code(text: str) -> str:
    """Return the ISO 639-1 code of a language named in a setting: `Portuguese`, `português`, `pt-BR`; "" if unknown.

    For a text that names several languages it is "" too.
    """
    folded = text.strip().casefold()
    for code, names in NAMES.items():
        if folded in (code, names[0].casefold(), names[1]):
            return code
    region = re.fullmatch(r"([a-z]{2})[-_][a-z0-9]{2,8}", folded)
    if region:
        return region[1] if region[1] in NAMES else ""
    words = re.findall(r"\w+", folded)
    found = {code for code, names in NAMES.items() if names[0].casefold() in words or names[1] in words}
    return found.pop() if len(found) == 1 else ""


def asked_language(text: str) -> str:
    """Return the code of the one language that a prompt asks for: `Answer in German.`, `em português`, `in pt-BR`.

    It is "" where none, or several, are named behind such a word.
    """
    found = {language_code(match[1]) or language_code(match[2] or "") for match in _ASKED.finditer(text)} - {""}
    return found.pop() if len(found) == 1 else ""


def language_name(code: str) -> str:
    """Return the English name of a language, or its code if it has none here."""
    return NAMES[code][0] if code in NAMES else code


def related(one: str, other: str) -> bool:
    """Tell whether two codes are the same language, or two that are easily taken for each other."""
    return one == other or any(one in group and other in group for group in _RELATED)


@dataclass(frozen=True)
class Sentences:
    """Alpaca's prompt in one language, and what validation asks in it.

    `preamble` is Alpaca's first paragraph with a request for that language. `headings` stand over instruction, question
    and answer. `instruction` is used for a record that has none.
    """

    preamble: str
    headings: tuple[str, str, str]
    instruction: str
    doctor: str
    questions: tuple[str, str, str]

    def prompt(self) -> dict[str, object]:
        """Return the settings of `[prompt]` that write this prompt, all but its language."""
        instruction, question, answer = (f"### {heading}" for heading in self.headings)
        return {
            "preset": "custom",
            "instruction": self.instruction,
            "user_turn": f"{self.preamble}\n\n{instruction}\n{{instruction}}\n\n{question}\n{{input}}\n\n{answer}\n",
            "suffix": "\n\n",
            "stops": [instruction, question, answer],
        }

    def validation(self) -> dict[str, object]:
        """Return the settings of `[validate]` that ask in this language."""
        return {"questions": list(self.questions), "instruction": self.doctor}


SENTENCES = {
    "es": Sentences(
        "A continuación hay una instrucción que describe una tarea, junto con una entrada que aporta más contexto. "
        "Escribe una respuesta en español que cumpla adecuadamente lo que se pide.",
        ("Instrucción:", "Entrada:", "Respuesta:"),
        "Explica:",
        "Explica como un médico de familia",
        (
            "¿Cómo se puede prevenir el síndrome de Noonan?",
            "¿Cuáles son los síntomas de la deshidratación?",
            "¿Cuándo debo acudir al médico si tengo fiebre?",
        ),
    ),
    "pt": Sentences(
        "Abaixo está uma instrução que descreve uma tarefa, acompanhada de uma entrada que fornece mais contexto. "
        "Escreva uma resposta em português que atenda adequadamente ao pedido.",
        ("Instrução:", "Entrada:", "Resposta:"),
        "Explique:",
        "Explique como um clínico geral",
        (
            "Como prevenir a síndrome de Noonan?",
            "Quais são os sintomas da desidratação?",
            "Quando devo procurar um médico se tiver febre?",
        ),
    ),
    "fr": Sentences(
        "Voici une instruction qui décrit une tâche, accompagnée d'une entrée qui en précise le contexte. "
        "Rédigez une réponse en français qui satisfait correctement à la demande.",
        ("Instruction :", "Entrée :", "Réponse :"),
        "Expliquez :",
        "Expliquez comme un médecin généraliste",
        (
            "Comment prévenir le syndrome de Noonan ?",
            "Quels sont les symptômes de la déshydratation ?",
            "Quand faut-il consulter un médecin en cas de fièvre ?",
        ),
    ),
    "de": Sentences(
        "Es folgt eine Anweisung, die eine Aufgabe beschreibt, zusammen mit einer Eingabe, die weiteren Kontext gibt. "
        "Schreibe eine Antwort auf Deutsch, die die Aufgabe angemessen erfüllt.",
        ("Anweisung:", "Eingabe:", "Antwort:"),
        "Erkläre:",
        "Erkläre wie ein Hausarzt",
        (
            "Wie kann man dem Noonan-Syndrom vorbeugen?",
            "Was sind die Symptome einer Dehydrierung?",
            "Wann sollte ich mit Fieber zum Arzt gehen?",
        ),
    ),
    "it": Sentences(
        "Di seguito è riportata un'istruzione che descrive un compito, insieme a un testo che fornisce ulteriore "
        "contesto. Scrivi una risposta in italiano che soddisfi adeguatamente la richiesta.",
        ("Istruzione:", "Testo:", "Risposta:"),
        "Spiega:",
        "Spiega come un medico di base",
        (
            "Come si può prevenire la sindrome di Noonan?",
            "Quali sono i sintomi della disidratazione?",
            "Quando devo andare dal medico se ho la febbre?",
        ),
    ),
    "nl": Sentences(
        "Hieronder staat een instructie die een taak beschrijft, samen met invoer die meer context geeft. "
        "Schrijf een antwoord in het Nederlands dat de opdracht naar behoren uitvoert.",
        ("Instructie:", "Invoer:", "Antwoord:"),
        "Leg uit:",
        "Leg uit als een huisarts",
        (
            "Hoe is het syndroom van Noonan te voorkomen?",
            "Wat zijn de symptomen van uitdroging?",
            "Wanneer moet ik met koorts naar de huisarts?",
        ),
    ),
}


def count_letters(text: str) -> int:
    """Count letters; one of Chinese, Japanese or Korean says as much as four others."""
    return sum(4 if ord(char) >= 0x3040 else 1 for char in text if char.isalpha())


_loading = threading.Lock()


def load_identifier() -> Any:
    """Load py3langid's model once, though several threads ask for it; it unpacks it into a temporary file."""
    with _loading:
        return _identifier()


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    with naming(Path(tempfile.gettempdir())):
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
