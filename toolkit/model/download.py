"""A hub download's progress as lines, where a Python program reads them; on a terminal the hub shows its own bars."""

import threading
from typing import Any

from toolkit.core import console, streams


def bars(label: str) -> dict[str, Any]:
    """Return what `snapshot_download` takes for its bars: nothing where the hub's own are shown."""
    told = streams.state()
    if told.sink is None:
        return {}
    from huggingface_hub import utils

    lock = threading.Lock()
    usual: Any = utils.tqdm  # type: ignore[attr-defined]

    class Lines(usual):  # type: ignore[misc]
        """A bar that is not drawn; the one that counts the bytes on the disk says lines."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **{**named, "disable": True})
            counts = named.get("unit") == "B" and str(named.get("desc", "")).startswith("Reconstructing")
            self.lines = console.Progress(f"downloading {label}", 0, "B") if counts else None

        def update(self, n: float | None = 1) -> None:
            if self.lines is None:
                return
            streams.adopt(told)  # the hub calls this in threads of its own
            with lock:
                self.lines.total = self.total or 0
                self.lines.advance(n or 0)

    return {"tqdm_class": Lines}
