"""What large libraries say of themselves: turned off, because the toolkit's own lines are shown instead."""

import threading

_importing = threading.Lock()


def silence_transformers() -> None:
    """Turn off transformers' own progress bars and advice, and bitsandbytes'; ours are shown instead.

    One thread at a time imports transformers: it puts another module in its place, which a second one would not see.
    """
    import logging
    import warnings

    with _importing:
        from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|peft|trl|accelerate")
