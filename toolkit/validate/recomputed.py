"""The trained model's logits, computed from the last layer's states each time they are asked for.

Logits of an answer token take as much disk as 31 tokens' states of Llama-3.1-8B; the head computes them in a sixteenth
of the time that all layers take.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from toolkit.validate.layers import Trained, chunk_size, head, logits_of, with_adapter
from toolkit.validate.metrics import Logits


@dataclass(frozen=True)
class Recomputed:
    """Logits of shape (answer tokens, vocabulary), float32; `states` are all tokens', `positions` the answers' in them.

    Only slices can be asked for. The arrays of states must be there. The block that was computed last is kept: rows are
    asked for in turn, and the head, which takes longer to read than to use, is then read once for several.
    """

    trained: Trained
    states: Logits
    positions: npt.NDArray[np.int64]
    _last: dict[int, Logits] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Answer tokens, vocabulary."""
        return len(self.positions), self.trained.skeleton.vocabulary

    def __len__(self) -> int:
        """Return the number of answer tokens."""
        return len(self.positions)

    def __getitem__(self, rows: slice) -> Logits:
        """Compute some rows."""
        first, end, _ = rows.indices(len(self))
        found = np.empty((max(0, end - first), self.shape[1]), np.float32)
        size = chunk_size(self.trained.skeleton)
        for start in range(first - first % size, end, size):
            low, high = max(first, start), min(end, start + size)
            found[low - first : high - first] = self._block(start, size)[low - start : high - start]
        return found

    def _block(self, start: int, size: int) -> Logits:
        if start not in self._last:
            self._last.clear()  # before the next one is there, too
            skeleton = self.trained.skeleton
            with head(self.trained), with_adapter(skeleton, True):
                self._last[start] = logits_of(skeleton, self.states[self.positions[start : start + size]])
        return self._last[start]
