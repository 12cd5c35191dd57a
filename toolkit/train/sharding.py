"""The model as a whole, on one device or sharded over several by accelerate's FSDP: its state, and its gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toolkit.train.flat import Flat
from toolkit.train.workers import Workers


@dataclass(frozen=True)
class Whole:
    """The model as it trains, and `inner`, as it was loaded; they differ where accelerate wrapped it.

    On one device the adapter is `flat`.
    """

    model: Any
    inner: Any
    optimizer: Any
    flat: Flat | None = None
    accelerator: Any = None

    @staticmethod
    def of(
        model: Any,
        make: Callable[[list[Any]], Any],
        workers: Workers,
        adapter: dict[str, Any],
        moments: Any,
        dtype: Any = None,
    ) -> "Whole":
        """Make the optimizer by `make`, shard the model where that is wanted, and load a checkpoint's state if any.

        `dtype` is what the model computes with, where the adapter's copy in it is to be kept from pass to pass.
        """
        load_adapter(model, adapter)
        if not workers.sharded:
            flat = Flat.of(_trained(model), dtype)
            whole = Whole(model, model, make(flat.vectors), flat)
            if moments is not None:
                whole.optimizer.load_state_dict(moments)
            return whole
        from accelerate import Accelerator

        accelerator = Accelerator()
        _make_shardable(model)
        wrapped, optimizer = accelerator.prepare(model, make(_trained(model)))
        if moments is not None:
            _load_sharded(wrapped, optimizer, moments)
        return Whole(wrapped, model, optimizer, accelerator=accelerator)

    def load(self, adapter: dict[str, Any]) -> None:
        """Take over a checkpoint's adapter."""
        if self.flat is not None:
            _copy(self._values(), adapter)
            self.flat.publish()
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, adapter, options=options)

    def clip(self, most: float) -> Any:
        """Scale the gradient to a norm of at most `most`, and return the norm it had."""
        import torch

        if self.flat is not None:
            return torch.nn.utils.clip_grad_norm_(self.flat.vectors, most)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), most)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def end_pass(self) -> None:
        """Add the gradient of a backward pass to that of the step."""
        if self.flat is not None:
            self.flat.gather()

    def gather(self, workers: Workers) -> None:
        """Add each gradient up over all workers; FSDP has done so already."""
        if self.flat is not None:
            workers.add_up([vector.grad for vector in self.flat.vectors])

    def end_step(self) -> None:
        """Show the model the weights that the optimizer has made, and forget the gradient."""
        if self.flat is not None:
            self.flat.publish()
        self.zero()

    def release(self) -> None:
        """Leave the adapter in the model as it is saved, in its whole precision."""
        if self.flat is not None:
            self.flat.release()

    def zero(self) -> None:
        """Forget the gradient."""
        if self.flat is not None:
            self.flat.zero()
        else:
            self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, Any], Any]:
        """Return the adapter by its parameters' names, and the optimizer's state; whole on worker 0 at least."""
        if self.flat is not None:
            return self._values(), self.optimizer.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        weights, moments = get_state_dict(self.model, _bare(self.optimizer), options=options)
        return dict(weights), moments

    def _values(self) -> dict[str, Any]:
        """Return the trained parameters' values in the vectors, by their names."""
        assert self.flat is not None
        return {name: part.weight for (name, _), part in zip(_named(self.model), self.flat.parts, strict=True)}


def load_adapter(model: Any, adapter: dict[str, Any]) -> None:
    """Copy a checkpoint's weights into the model's trainable parameters; none may be missing."""
    if adapter:
        _copy(dict(_named(model)), adapter)


def _copy(own: dict[str, Any], adapter: dict[str, Any]) -> None:
    import torch

    if set(own) != set(adapter):
        odd = sorted(set(own) ^ set(adapter))
        raise ValueError(f"the checkpoint is of another adapter: {odd[0]} and {len(odd) - 1} more")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(adapter[name])


def _named(model: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _trained(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _make_shardable(model: Any) -> None:
    """Name the bytes of 4-bit weights floats, where they are not yet: accelerate leaves integers whole, on no card."""
    import torch

    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit" and weight.dtype == torch.uint8:
            weight.data = weight.data.flatten().view(torch.bfloat16).unsqueeze(1)
            weight.quant_storage = module.quant_storage = torch.bfloat16


def _bare(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


def _load_sharded(model: Any, optimizer: Any, moments: Any) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, _bare(optimizer), moments, options=options)
