"""What the doctor asks about exporting."""

from collections.abc import Sequence

from toolkit.core.stage import Check


def quantizer(quantizations: Sequence[str] = ()) -> list[Check]:
    """Say what quantizes: the compiled kernels, tested against libggml (a quarter of a second), or libggml itself.

    Also says what the CUDA GPU does, for these quantizations' own types; new kernels are compiled (seconds per type).
    """
    from toolkit import kernels
    from toolkit.kernels import gpu

    sound, found = kernels.kernels_state()
    fix = "install a C++ compiler (Debian: apt install g++), then install the toolkit again; no other change is needed"
    checks = [Check("quantizer", True if sound else None, found, "" if sound else fix)]
    mixtures = {name[:4] for name in quantizations}
    kinds = sorted(mixtures | ({"Q6_K"} if any(name.endswith("_K") for name in mixtures) else set()))
    quantizer_gpu = gpu.gpu_state([kind for kind in kinds if kind in gpu.NAMES])
    if quantizer_gpu is not None:
        sound, found = quantizer_gpu
        fix = "no action is needed: the CPU writes the same bytes; another version of PyTorch may fix the GPU"
        checks.append(Check("quantizer, GPU", True if sound else None, found, "" if sound else fix))
    return checks
