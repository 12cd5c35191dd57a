"""Which library trains, on which device: chosen by what the machine has and what the settings say."""

from toolkit import machine
from toolkit.errors import MISSING, ToolkitError
from toolkit.train import peft_backend
from toolkit.train.backend import Backend


def choose(wanted: str, avoid: str = "") -> Backend:
    """Choose Unsloth where there is a CUDA card and it is installed, else plain PEFT; or what the settings demand.

    `avoid` says why Unsloth is not to be taken although it is installed. Raises ToolkitError (exit 3) where Unsloth is
    demanded and cannot run.
    """
    cuda = has_cuda()
    installed = machine.installed("unsloth")
    if wanted == "unsloth" or (wanted == "auto" and cuda and installed and not avoid):
        missing = [name for name, there in (("a CUDA card", cuda), ("the package unsloth", installed)) if not there]
        if missing:
            raise ToolkitError(
                f"train.backend is unsloth, but this machine has not {' and not '.join(missing)}",
                hint='install it with `pip install -c constraints.txt ".[cuda]"`, or set train.backend = "peft"',
                exit_code=MISSING,
            )
        from toolkit.train import unsloth_backend

        return unsloth_backend.backend()
    if wanted == "peft":
        why = "plain PEFT"
    elif not cuda:
        why = "plain PEFT, because there is no CUDA card"
    else:
        # Measured on an H100, by the plan: 56 % with recomputed activations, 79 % for short steps with all kept.
        cost = "the same result, at half to four fifths of Unsloth's speed"
        why = f"plain PEFT, because {avoid or 'Unsloth is not installed'}: {cost}"
    return peft_backend.backend("cuda" if cuda else "cpu", why)


def has_cuda() -> bool:
    """Tell whether torch sees a CUDA card."""
    import torch

    return bool(torch.cuda.is_available())
