"""Write 2,000 chats of two to four turns from MedQuAD's questions and answers, as OpenAI's messages.

    python benchmarks/medquad_chats.py data/raw/medquad-2479.csv chats.jsonl

Each chat asks what neighbouring rows ask, of one disease where these are about one. Rows are used in several chats, so
answers of held-out chats are in training too: the file shows that chats work, and not how good a model becomes.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit.core.config import Config
from toolkit.prepare.clean import Record
from toolkit.prepare.division import read_rows
from toolkit.prepare.source import Source

CHATS = 2000
SYSTEM = "Explain as a general doctor."


def chats(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the file; every fourth chat has a system message."""
    for number in range(CHATS):
        said = [{"role": "system", "content": SYSTEM}] if number % 4 == 0 else []
        for record in records[number : number + 2 + number % 3]:
            said += [{"role": "user", "content": record.question}, {"role": "assistant", "content": record.answer}]
        yield {"id": f"chat-{number}", "messages": said}


def main(source: str, target: str) -> None:
    """Read MedQuAD's CSV and write the chats."""
    config = Config.model_validate({"data": {"personal": "off"}})
    records = read_rows([Source(Path(source))], config).records
    with Path(target).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats(records))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
