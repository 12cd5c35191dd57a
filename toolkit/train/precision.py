"""Mixed precision: bf16 or f16 in the forward pass; with f16 the loss is scaled, so that small gradients survive."""

from typing import Any

LEAST_SCALE = 1.0  # below it, gradients that overflow are no matter of scale any more


class Precision:
    """The autocast of one device, and torch's gradient scaler where the precision is f16."""

    def __init__(self, name: str, device: str) -> None:
        import torch

        self.name = name
        self.device = device
        self.dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[name]
        self.scaler = torch.amp.GradScaler(device) if name == "f16" else None

    def autocast(self) -> Any:
        """Return the context of a forward pass."""
        import torch

        return torch.autocast(self.device, dtype=self.dtype, enabled=self.name != "f32")

    def attach(self, model: Any) -> None:
        """Tell Unsloth's loss, which computes gradients in its forward pass, what they will be scaled by."""
        while self.scaler is not None and model is not None:
            model.accelerator_scaler = self.scaler
            model = getattr(model, "model", None)

    def backward(self, loss: Any) -> None:
        """Add a loss's gradients to those that are there."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def clip(self, whole: Any, optimizer: Any, most: float) -> Any:
        """Scale the gradient to a norm of at most `most`, and return the norm it had, on its device."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        return whole.clip(most)

    def may_overflow(self) -> bool:
        """Tell whether an infinite gradient only means that the scale is still too high: the step is then skipped."""
        return self.scaler is not None and self.scaler.get_scale() > LEAST_SCALE

    def step(self, optimizer: Any) -> None:
        """Let the optimizer take a step, unless the scaled gradients overflowed."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {} if self.scaler is None else dict(self.scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
