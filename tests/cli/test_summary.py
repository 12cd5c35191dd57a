"""What a registration says of its proof at its end."""

from pathlib import Path

from toolkit.cli import summary
from toolkit.core.run_folder import RunFolder
from toolkit.pipeline import Done

EQUAL = {"question": "How?", "llama.cpp": "Drink water.", "ollama": "Drink water."}
PARTED = {"question": "What?", "llama.cpp": "Drink tea.", "ollama": "Drink water."}


def tag(*greedy: dict[str, str]) -> dict[str, object]:
    proof = {"prompts_verified": 192, "prompts_counted": 68, "greedy": list(greedy), "done_reason": "stop"}
    return {"digest": "ab" * 32, **proof}


def test_greedy_answers_that_part_are_shown_beside_each_other() -> None:
    figures = {
        "server": "http://127.0.0.1:1",
        "server_version": "0.34.1",
        "name": "m",
        "tags": {"f16": tag(EQUAL, EQUAL), "q4_k_m": tag(EQUAL, PARTED), "latest": tag(EQUAL, PARTED)},
    }
    done = Done("register", fresh=False, why="", seconds=1.0, figures=figures)
    payload, text = summary.of(done, RunFolder(Path("exports/m"), "m"))
    assert payload["tags"] == figures["tags"]
    assert "registered in Ollama 0.34.1 at http://127.0.0.1:1" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip().startswith("m:")}
    assert "2 of 2" in rows["m:f16"] and "1 of 2" in rows["m:latest"] and " 192 " in rows["m:latest"]
    assert text.splitlines()[-1] == (
        "m:q4_k_m asked 'What?': after 6 equal characters llama.cpp says 'tea.', Ollama 'water.'"
    )
    assert sum("equal characters" in line for line in text.splitlines()) == 1
