"""Names and places, by the models that a user has: spaCy's and transformers', each in a folder."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from toolkit.core import hardware
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare import division
from toolkit.prepare.personal.analyzer import finder

TEXT = "Maria Souza of Sobral, CPF 529.982.247-25, has Hodgkin lymphoma. Call Maria Souza at (11) 98765-4321."


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, forbidden)
    monkeypatch.setattr(socket.socket, "connect", forbidden)


def found(folder: Path, text: str = TEXT) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in finder(str(folder))(text)]


def spacy_model(folder: Path) -> Path:
    """A spaCy pipeline on disk, as `spacy.load` takes it: tokenizer and a component that marks entities."""
    import spacy

    nlp = spacy.blank("en")
    ruler: Any = nlp.add_pipe("entity_ruler")
    ruler.add_patterns(
        [
            {"label": "PERSON", "pattern": "Maria Souza"},
            {"label": "GPE", "pattern": "Sobral"},
            {"label": "ORG", "pattern": "lymphoma"},
            {"label": "CARDINAL", "pattern": "529.982.247-25"},
        ]
    )
    nlp.to_disk(folder)
    return folder


@pytest.mark.slow
def test_a_spacy_model_and_the_patterns_together(tmp_path: Path) -> None:
    assert found(spacy_model(tmp_path / "model")) == [
        ("PERSON", "Maria Souza"),
        ("LOCATION", "Sobral"),
        ("BR_CPF", "529.982.247-25"),
        ("PERSON", "Maria Souza"),
        ("PHONE_NUMBER", "(11) 98765-4321"),
    ]


@pytest.mark.parametrize("what", ["absent", "empty", "no names", "broken"])
def test_a_folder_without_such_a_model_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "model"
    if what != "absent":
        folder.mkdir()
    if what == "no names":
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    if what == "broken":
        (folder / "config.cfg").write_text("[nlp")
    with pytest.raises(ToolkitError) as caught:
        finder(str(folder))
    assert caught.value.exit_code == 3 and str(folder) in caught.value.message
    assert "data.personal_model" in caught.value.hint


@pytest.mark.slow
def test_a_transformers_model(tmp_path: Path) -> None:
    """A small BERT, trained here to mark two names and a town."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    encoder = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    encoder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    encoder.train_from_iterator([TEXT], trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=encoder, pad_token="[PAD]", unk_token="[UNK]")
    labels = ["O", "B-PER", "I-PER", "B-LOC"]
    marks = {"Maria": 1, "Souza": 2, "Sobral": 3}
    torch.manual_seed(0)
    model = BertForTokenClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
    )
    given = tokenizer(TEXT, return_tensors="pt")
    wanted = torch.tensor([[marks.get(word, 0) for word in tokenizer.convert_ids_to_tokens(given["input_ids"][0])]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(input_ids=given["input_ids"], labels=wanted).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert [(kind, value) for kind, value in found(tmp_path / "model") if kind in ("PERSON", "LOCATION")] == [
        ("PERSON", "Maria Souza"),
        ("LOCATION", "Sobral"),
        ("PERSON", "Maria Souza"),
    ]


@pytest.mark.parametrize(("gib", "processes"), [(0, 1), (2, 1), (5, 4), (64, 8), (None, 8)])
def test_as_many_processes_load_a_model_as_have_room(
    gib: int | None, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.bin").write_bytes(b"x" * 2**20)
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    monkeypatch.setattr(hardware, "available_memory", lambda: None if gib is None else gib * 2**30)
    settings = DataSettings(personal_model=str(tmp_path))
    assert division._processes(settings) == processes
    assert (f"{processes} of 8 cores look for names" in capsys.readouterr().err) is (processes < 8)
    for without in (DataSettings(), settings.model_copy(update={"personal": "off"})):
        assert division._processes(without) == 8
