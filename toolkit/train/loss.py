"""The loss of a packed row: only the positions that are learned get logits, and only a piece of them at a time.

Llama-3.1's vocabulary makes 0.5 MB of float32 logits a token; in pieces of 512 positions that is 0.26 GB however long
the row is. The pieces are computed again in the backward pass, which costs 3 % of an 8B model's step.
"""

from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

from toolkit.memory import LOGITS
from toolkit.train.batches import ends, sent


def attach(model: Any) -> None:
    """Give a transformers model for causal language modelling a forward pass that returns the loss alone.

    Called with `labels`, `learned` and `total`, it returns the sum of the cross entropy (nats) of all learned
    positions, divided by `total`; called without labels it does what it did before. The output head takes `targets`
    likewise: it is called once a pass, with or without anything to learn, because FSDP gathers its weights there.
    """
    former, head = model.forward, model.get_output_embeddings()
    logits = head.forward
    cap = getattr(model.config, "final_logit_softcapping", None)

    def forward(self: Any, *, labels: Any = None, learned: Any = None, total: Any = None, **inputs: Any) -> Any:
        if labels is None:
            return former(**inputs)
        hidden = getattr(self, self.base_model_prefix)(**inputs).last_hidden_state
        targets = labels[:, 1:].reshape(-1)[learned]
        states = hidden[:, :-1].reshape(-1, hidden.shape[-1])[learned]
        return SimpleNamespace(loss=head(states, targets=targets) / total)

    def headed(states: Any, *, targets: Any = None) -> Any:
        return logits(states) if targets is None else cross_entropy(logits, states, targets, cap)

    model.forward, head.forward = MethodType(forward, model), headed


def cross_entropy(head: Callable[[Any], Any], states: Any, targets: Any, cap: float | None = None) -> Any:
    """Return the summed cross entropy (nats, float32) of the tokens `targets` that follow the hidden `states`.

    `states` is (positions, width), `targets` (positions,), and `head` makes logits of states. `cap` is the softcap of
    models that have one: cap · tanh(logits / cap).
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def piece(states: Any, targets: Any) -> Any:
        logits = head(states).float()
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

    loss = states.sum(dtype=torch.float32) * 0.0 if not len(targets) else torch.zeros((), device=states.device)
    for start in range(0, len(targets), LOGITS):
        part = states[start : start + LOGITS], targets[start : start + LOGITS]
        loss = loss + (checkpoint(piece, *part, use_reentrant=False) if torch.is_grad_enabled() else piece(*part))
    return loss


def inputs(batch: Any) -> dict[str, Any]:
    """Return a packed batch as transformers' models take it, for our attention and for flash attention's kernels."""
    places = ends(batch.lengths, batch.input_ids.device)
    longest = max(batch.lengths)
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "learned": sent(batch.learned, batch.input_ids.device),
        "lengths": batch.lengths,
        "cu_seq_lens_q": places,
        "cu_seq_lens_k": places,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
    }
