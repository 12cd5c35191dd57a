"""The settings as typed, frozen models: one section a stage, unknown keys refused.

Defaults are the recipe (a Llama-3.1-8B QLoRA on MedQuAD) made safe. The text under each key is its help: `toolkit init`
writes it as a comment. A new setting's default keeps what was done before: a run recorded without it had that default.
"""

from typing import Any

from pydantic import Field, model_validator

from toolkit.core.evaluate_settings import BASE, TRAINED, EvaluateSettings
from toolkit.core.input_settings import DataSettings, ModelSettings, PromptSettings, RunSettings
from toolkit.core.output_settings import ALL, ExportSettings, OllamaSettings, ValidateSettings
from toolkit.core.section import Section
from toolkit.core.train_settings import TrainSettings


class Config(Section):
    """All settings of a run."""

    run: RunSettings = RunSettings()
    data: DataSettings = DataSettings()
    prompt: PromptSettings = PromptSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    export: ExportSettings = ExportSettings()
    # `validate` is a method of pydantic's models, so the attribute has another name than the section.
    validation: ValidateSettings = Field(ValidateSettings(), alias="validate")
    evaluate: EvaluateSettings = EvaluateSettings()
    ollama: OllamaSettings = OllamaSettings()

    @model_validator(mode="after")
    def _tags_are_written(self) -> "Config":
        absent = [name for name in self.ollama.tags if name not in (ALL, *self.export.quantizations)]
        if absent:
            written = ", ".join(self.export.quantizations)
            raise ValueError(f'ollama.tags: "{absent[0]}" is not among export.quantizations: {written}')
        return self

    @model_validator(mode="after")
    def _systems_are_written(self) -> "Config":
        there = (BASE, TRAINED, *self.export.quantizations)
        absent = [name for name in self.evaluate.systems if name not in there]
        if absent:
            raise ValueError(f'evaluate.systems: "{absent[0]}" is none of {", ".join(there)}')
        return self

    @property
    def served(self) -> list[str]:
        """The quantizations that `register` puts into Ollama: `export.default`, and those that `ollama.tags` names."""
        wanted = (self.export.default, *self.ollama.tags)
        return [name for name in self.export.quantizations if name in wanted or ALL in wanted]

    def section(self, name: str) -> dict[str, Any]:
        """Return one section's settings as plain values, under the name it has in the file."""
        section: Section = self.validation if name == "validate" else getattr(self, name)
        return section.model_dump(mode="json")


SECTIONS: dict[str, type[Section]] = {
    (field.alias or name): field.annotation  # type: ignore[misc]
    for name, field in Config.model_fields.items()
}
