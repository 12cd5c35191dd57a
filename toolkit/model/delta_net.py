"""Linear attention by the gated delta rule (Qwen3.5): its sizes, read from config.json."""

from dataclasses import dataclass

from toolkit.model.config_values import Values, brief, count

LINEAR, FULL = "linear_attention", "full_attention"  # kinds of layers


@dataclass(frozen=True)
class DeltaNet:
    """Linear attention by the gated delta rule, in the layers that `layers` marks; the others attend to every token.

    `keys` and `values` are the counts of key and value heads, which all are `size` wide; `kernel` tokens are convolved.
    """

    layers: tuple[bool, ...]
    keys: int
    values: int
    size: int
    kernel: int

    @property
    def inner(self) -> int:
        """Width of all value heads."""
        return self.values * self.size

    @property
    def mixed(self) -> int:
        """Width of query, key and value together."""
        return 2 * self.keys * self.size + self.inner

    def linears(self, hidden: int) -> dict[str, tuple[int, int]]:
        """Return the linear layers of its own: name → (inputs, outputs)."""
        return {
            "in_proj_qkv": (hidden, self.mixed),
            "in_proj_z": (hidden, self.inner),
            "in_proj_b": (hidden, self.values),
            "in_proj_a": (hidden, self.values),
            "out_proj": (self.inner, hidden),
        }

    def small(self) -> int:
        """Count the weights of one layer that are in no linear one: convolution, decay, its bias, and the norm."""
        return self.kernel * self.mixed + 2 * self.values + self.size

    def state(self) -> int:
        """Count the numbers that a sequence keeps in one layer, whatever its length."""
        return self.size * self.inner + (self.kernel - 1) * self.mixed


def delta_net(values: Values, layers: int) -> DeltaNet:
    """Read the layers of linear attention; raises ValueError that names the key of an impossible value."""
    kinds = values.get("layer_types")
    if kinds is None:
        every = count(values, "full_attention_interval", 4)
        kinds = [LINEAR if (layer + 1) % every else FULL for layer in range(layers)]
    if not isinstance(kinds, list) or any(kind not in (LINEAR, FULL) for kind in kinds):
        raise ValueError(f"`layer_types` is {brief(kinds)}, but only {LINEAR} and {FULL} are supported")
    if len(kinds) != layers:
        raise ValueError(f"`layer_types` lists {len(kinds):,} layers, but `num_hidden_layers` is {layers:,}")
    size, width = count(values, "linear_key_head_dim", 128), count(values, "linear_value_head_dim", 128)
    if size != width:
        raise ValueError(
            f"`linear_value_head_dim` is {width}, but llama.cpp supports only `linear_key_head_dim`, {size}"
        )
    keys, heads = count(values, "linear_num_key_heads", 16), count(values, "linear_num_value_heads", 32)
    if heads % keys:
        raise ValueError(f"`linear_num_value_heads` {heads} is not a multiple of `linear_num_key_heads` {keys}")
    marks = tuple(kind == LINEAR for kind in kinds)
    return DeltaNet(marks, keys, heads, size, count(values, "linear_conv_kernel_dim", 4))
