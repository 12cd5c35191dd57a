import json
from pathlib import Path

import pytest

from tests.support import outside
from tests.support.places import REPOSITORY
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer

SAMPLE = REPOSITORY / "data/sample.csv"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small byte-level BPE with BOS and EOS, trained on the sample and loaded as every base's is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        show_progress=False,
    )
    encoder.train_from_iterator([SAMPLE.read_text(encoding="utf-8")], trainer)
    encoder.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    folder = tmp_path_factory.mktemp("base")
    encoder.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end_of_text|>"}))
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def medquad() -> Path:
    """The real 2,479 rows."""
    return outside.medquad()
