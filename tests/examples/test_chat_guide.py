"""What docs/guide/chats.md says of files and reasons is what prepare does."""

import json
import re
from pathlib import Path

from tests.support.places import REPOSITORY
from toolkit.core.config_file import build
from toolkit.prepare import messages
from toolkit.prepare.division import rows_of
from toolkit.prepare.read import read_source
from toolkit.prepare.source import Source

GUIDE = (REPOSITORY / "docs/guide/chats.md").read_text(encoding="utf-8")


def test_the_four_forms_give_the_same_record(tmp_path: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)\n```", GUIDE, re.DOTALL)
    assert len(blocks) == 4
    found = set()
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(block + "\n", encoding="utf-8")
        config = build({}, ["data.personal=off"])
        (record,) = rows_of([read_source(Source(path), config.data)], config).records
        found.add((record.instruction, record.history, record.question, record.answer, record.normalised))
    chat = (("What is a fever?", "A high temperature."),)
    assert found == {("Be brief.", chat, "From when on?", "From 38 °C.", "what is a fever")}
    assert len(json.loads(blocks[0])["messages"]) == 5


def test_the_table_has_every_reason() -> None:
    table = GUIDE.partition("| reason |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE)) == set(messages.CHAT_HINTS)
