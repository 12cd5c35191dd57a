"""One training job while it runs: what was chosen for it, and what it has come to."""

from dataclasses import dataclass, field
from typing import Any

from toolkit.config import Config
from toolkit.memory import Plan
from toolkit.run import RunFolder
from toolkit.train import batches
from toolkit.train.backend import Backend
from toolkit.train.batches import Batch
from toolkit.train.examples import Example
from toolkit.train.interruption import Interruption
from toolkit.train.log import LogKeeper
from toolkit.train.precision import Precision
from toolkit.train.sharding import Whole
from toolkit.train.workers import Workers


@dataclass
class Job:
    """All that one run of the loop works with.

    `plan` shrinks when memory runs out. `model` is as it was loaded; once the loop runs, as it trains. `clock` is the
    moment from which the next step's time counts.
    """

    config: Config
    folder: RunFolder
    backend: Backend
    model: Any
    plan: Plan
    sides: dict[str, list[Example]]
    workers: Workers
    precision: Precision
    log: LogKeeper
    interruption: Interruption
    fingerprint: str
    tokens: int = 0
    seconds: float = 0.0
    clock: Any = None
    seen_here: int = 0
    out_of_memory: int = 0
    whole: Whole = field(init=False)
    optimizer: Any = field(init=False)

    @property
    def device(self) -> Any:
        """The device of this worker."""
        return self.workers.device(self.backend.device)

    def collate(self, records: list[Example]) -> Batch:
        """Lay records out for one forward pass on this worker's device."""
        return batches.collate(
            records,
            self.device,
            padded=self.backend.padded(self.whole.inner),
            multiple=batches.ALIGNED if self.backend.device == "cuda" else 1,
        )
