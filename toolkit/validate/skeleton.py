"""A model of transformers and PEFT that holds only the weights of the part that is in use.

The model's own `forward` runs for every part. All layers but one only pass on what they get, and the run ends when that
one is done. So the scale of embeddings, rotary positions, the mask of each layer's type, and caps and scales of logits
are the model's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.native import alone
from toolkit.core.quiet import silence_transformers
from toolkit.model.text_part import text_part

HEAD = -1  # of `Pass.layer`: no layer computes, the head does


class _Reached(Exception):
    """The layer in question is done: the rest of the model's forward pass is of no use."""


@dataclass
class Pass:
    """One forward pass in progress: which layer computes, with what, and what came out.

    With `hidden` None the first layer only keeps what the embedding gives it. `tuples` says that this model's layers
    return tuples.
    """

    layer: int = 0
    hidden: Any = None
    found: Any = None
    tuples: bool = False


@dataclass
class Skeleton:
    """A PEFT model on torch's meta device, `adapter` with its tensors by the model's names, and the names of its parts.

    `tied` maps a base's weight to the one it is a copy of. `linears` are the weights that 4-bit loading quantizes.
    """

    model: Any
    adapter: dict[str, Any]
    tied: dict[str, str]
    linears: set[str]
    device: str
    current: Pass = field(default_factory=Pass)

    @property
    def base(self) -> Any:
        """The model of transformers inside."""
        return self.model.get_base_model()

    @property
    def decoder(self) -> Any:
        """The part that holds the layers."""
        return self.base.get_decoder()

    @property
    def hidden_size(self) -> int:
        """The width of what a layer gives to the next one."""
        return int(self.decoder.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """The number of logits."""
        return int(self.base.get_output_embeddings().weight.shape[0])

    def name_of(self, module: Any) -> str:
        """Return the full name of one of the model's modules."""
        return str(next(name for name, found in self.model.named_modules() if found is module))


@alone()
def make_skeleton(base: Path, adapter: Path, device: str) -> Skeleton:
    """Build base and adapter without the base's weights; the adapter's stay in its file until they are used.

    Raises ToolkitError if the adapter does not fit the base.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in ("adapter_config.json", "adapter_model.safetensors"):  # PEFT would take a pickled .bin instead
        if not (adapter / name).is_file():
            raise ToolkitError(
                f"the adapter folder `{adapter}` has no {name}",
                hint="run `toolkit train`, or copy a folder there that PEFT's save_pretrained wrote",
                exit_code=MISSING,
            )
    silence_transformers()
    torch.set_float32_matmul_precision("highest")  # no TF32: it would cost three digits
    config, _ = text_part(AutoConfig.from_pretrained(base))
    if getattr(config, "quantization_config", None) is not None:  # the weights are read dequantized
        del config.quantization_config
    # transformers would take torch's attention, which leaves out Gemma-2's soft cap.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    options = {"attn_implementation": "eager"} if capped else {}
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
    model.tie_weights()  # accelerate's context gives each name a weight of its own
    first: dict[int, str] = {}
    tied = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(weight), name) != name:
            tied[name] = first[id(weight)]
    head = model.get_output_embeddings()
    linears = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    peft, tensors = _put_adapter_on(model, adapter, base)
    peft.eval().requires_grad_(False)
    skeleton = Skeleton(peft, tensors, tied, linears, device)
    for index, layer in enumerate(skeleton.decoder.layers):
        _lead_through(skeleton.current, index, layer)
    return skeleton


def _put_adapter_on(model: Any, adapter: Path, base: Path) -> tuple[Any, dict[str, Any]]:
    """Put an adapter on a model without weights; return both, the adapter's tensors under the model's names."""
    from peft import PeftConfig, PeftModel
    from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
    from safetensors import SafetensorError

    found: dict[str, Any] = {}

    def keep(module: Any, tensors: dict[str, Any], *_: Any) -> None:
        found.update(tensors)

    try:
        config = PeftConfig.from_pretrained(str(adapter))
        config.inference_mode = True
        peft = PeftModel(model, config, low_cpu_mem_usage=True)
        hook = peft.register_load_state_dict_pre_hook(keep)
        # Without memory there is nothing to load into; what counts are the checks, and the names that PEFT gives.
        set_peft_model_state_dict(peft, load_peft_weights(str(adapter), device="cpu"))
        hook.remove()
    except (RuntimeError, ValueError, KeyError, SafetensorError) as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        reason = next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(exc).__name__)
        raise ToolkitError(
            f"the adapter in `{adapter}` does not fit the base in `{base}`: {reason}",
            hint="validate against the base that the adapter was trained on (`model.base`, `model.base_16bit`)",
        ) from None
    return peft, found


def _lead_through(current: Pass, index: int, layer: Any) -> None:
    """Let a layer compute only when it is its turn; at other times it passes on what it gets."""
    own: Callable[..., Any] = layer.forward

    def forward(hidden_states: Any, *arguments: Any, **named: Any) -> Any:
        if current.hidden is None:
            current.found = hidden_states
            raise _Reached
        if index == current.layer:
            result = own(current.hidden, *arguments, **named)
            current.tuples = isinstance(result, tuple)
            current.found = result[0] if current.tuples else result
            raise _Reached
        return (current.hidden,) if current.tuples else current.hidden

    layer.forward = forward


def compute(skeleton: Skeleton, layer: int, *, hidden: Any = None, ids: Sequence[int] = (), keep: Any = 0) -> Any:
    """Return what one layer makes of `hidden`, both of shape (1, tokens, width), float32.

    With `ids` instead it is what the embedding gives to the first layer. With the layer HEAD it is the logits at the
    positions `keep`, shape (1, positions, vocabulary). The part's weights must be there.
    """
    import torch

    current = skeleton.current
    current.layer, current.hidden, current.found = layer, hidden, None
    given = {"inputs_embeds": hidden} if hidden is not None else {"input_ids": torch.tensor([list(ids)])}
    with torch.inference_mode():
        try:
            logits = skeleton.base(**given, use_cache=False, logits_to_keep=keep).logits
        except _Reached:
            found, current.found = current.found, None
            return found
    return logits


def place_buffers(skeleton: Skeleton, device: str) -> None:
    """Move what is no weight, such as rotary frequencies, to the device that computes next."""
    for module in skeleton.model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type != "meta":
                module._buffers[name] = buffer.to(device)
