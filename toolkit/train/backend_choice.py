"""Which library trains here: Unsloth where it can, else plain PEFT, or what the settings demand."""

from toolkit.core import hardware
from toolkit.train import peft_backend, unsloth_backend
from toolkit.train.backend import Backend, sees_gpu


def choose_backend(wanted: str, avoid: str = "") -> Backend:
    """Choose Unsloth if it is installed and there is a CUDA GPU, else plain PEFT; or what the settings demand.

    `avoid` says why Unsloth must not be used although it is installed. `precision.check_backend` has checked what the
    settings demand. Raises UnslothFailed.
    """
    cuda = sees_gpu()
    if wanted == "unsloth" or (wanted == "auto" and cuda and hardware.installed("unsloth") and not avoid):
        return unsloth_backend.make_unsloth_backend()
    why = "plain PEFT"
    if wanted == "auto" and not cuda:
        why = "plain PEFT, because there is no CUDA GPU"
    elif wanted == "auto":
        # Measured on an H100, by the plan: 56 % with recomputed activations, 79 % for short steps with all kept.
        cost = "the same result, at half to four fifths of Unsloth's speed"
        why = f"plain PEFT, because {avoid or 'Unsloth is not installed'}: {cost}"
    return peft_backend.make_peft_backend("cuda" if cuda else "cpu", why)
