"""Turn off the output of large libraries, because the toolkit shows its own lines."""

import threading

_importing = threading.Lock()


def silence_transformers() -> None:
    """Turn off transformers' own progress bars and advice, and bitsandbytes'; ours are shown instead.

    One thread at a time imports transformers: it puts another module in its place, which a second one would not see.
    """
    import warnings

    with _importing:
        from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    silence_bitsandbytes()
    warnings.filterwarnings("ignore", module="torch|transformers|peft|trl|accelerate")


def silence_bitsandbytes() -> None:
    """Turn off bitsandbytes' advice, which it gives when it is imported; nothing is imported here.

    PEFT and transformers import it by themselves, so this comes before either.
    """
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
