"""`train_log.jsonl`: one object a step, and one for each held-out loss."""

import contextlib
import json
from pathlib import Path
from typing import Any


class LogKeeper:
    """The log while it grows, on disk at once; cut back to the step that a resumed run starts from.

    Without a path (a worker that is not the first) nothing is written.
    """

    def __init__(self, path: Path | None, keep_to_step: int) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if keep_to_step and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # the last line of a killed process
                    entry = json.loads(line)
                    if entry["step"] <= keep_to_step:
                        self.entries.append(entry)
        path.write_text(self.text(), encoding="utf-8")

    def add(self, entry: dict[str, Any]) -> None:
        """Append one entry."""
        self.entries.append(entry)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def held_out(self, step: int) -> float | None:
        """Return the held-out loss recorded at a step, if any."""
        losses = [entry["held_out_loss"] for entry in self.held_out_entries() if entry["step"] == step]
        return losses[0] if losses else None

    def held_out_entries(self) -> list[dict[str, Any]]:
        """Return the entries with a held-out loss, in order."""
        return [entry for entry in self.entries if "held_out_loss" in entry]

    def losses(self) -> list[float]:
        """Return the training loss of each step."""
        return [entry["loss"] for entry in self.entries if "loss" in entry]

    def text(self) -> str:
        """Return the whole log as JSON lines."""
        return "".join(json.dumps(entry) + "\n" for entry in self.entries)
