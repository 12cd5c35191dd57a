"""The trained model's logits, computed from the last layer's states each time they are asked for.

Logits of an answer token take as much disk as 31 tokens' states of Llama-3.1-8B; the head computes them in a sixteenth
of the time that all layers take.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.validate.layers import Trained, chunk_size, head, logits_of, with_adapter
from toolkit.validate.metrics import Logits


@dataclass(frozen=True)
class Recomputed:
    """Logits of shape (answer tokens, vocabulary), float32; `states` are all tokens', `positions` the answers' in them.

    Only slices can be asked for. The arrays of states must be there.
    """

    trained: Trained
    states: Logits
    positions: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """Answer tokens, vocabulary."""
        return len(self.positions), self.trained.skeleton.vocabulary

    def __len__(self) -> int:
        """Return the number of answer tokens."""
        return len(self.positions)

    def __getitem__(self, rows: slice) -> Logits:
        """Compute some rows."""
        skeleton, wanted = self.trained.skeleton, self.positions[rows]
        found = np.empty((len(wanted), skeleton.vocabulary), np.float32)
        step = chunk_size(skeleton)
        with head(self.trained), with_adapter(skeleton, True):
            for start in range(0, len(wanted), step):
                some = wanted[start : start + step]
                found[start : start + step] = logits_of(skeleton, self.states[some])
        return found
