from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import scored_models, threads
from toolkit.prompt import held_out
from toolkit.prompt.format import Prompt, PromptFormat, prompt_format
from toolkit.prompt.renderings import render
from toolkit.prompt.templates import chat_template
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer
from toolkit.validate import gguf, reference
from toolkit.validate.layers import open_trained, untrained_answers


@dataclass(frozen=True)
class Trained:
    """The measured reference of the small run, and what a GGUF is measured with."""

    reference: reference.Reference
    records: list[held_out.Record]
    tokenizer: Tokenizer
    form: PromptFormat
    prompts: list[Prompt]
    answers: list[str | None]

    def measure(self, path: Path, quantization: str, *, ask: bool = False) -> gguf.Measurement:
        return gguf.measure(
            path,
            quantization,
            self.records,
            self.records[:4],
            self.reference.logits,
            self.tokenizer,
            chat_template(self.form, bos=True),
            self.prompts if ask else [],
            8,
            self.form.stops,
        )


@pytest.fixture(autouse=True, scope="package")
def in_one_thread() -> Iterator[None]:
    with threads.one_thread():
        yield


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> scored_models.World:
    return scored_models.world(tmp_path_factory.mktemp("validate"))


@pytest.fixture(scope="package")
def trained(made: scored_models.World) -> Iterator[Trained]:
    tokenizer, form = load_tokenizer(made.base.folder), prompt_format(made.config.prompt)
    records = [*held_out.read_held_out(made.folder.split_file("test"), form, tokenizer)]
    settings = made.config.validation
    prompts = [render(form, question, settings.instruction) for question in settings.questions]
    layers = open_trained(made.base.folder, made.folder.adapter)
    answers = untrained_answers(layers, tokenizer, prompts, 8, form.stops)
    with reference.measured(layers, records[:4], made.folder.path) as measured:
        yield Trained(measured, records, tokenizer, form, prompts, answers)
