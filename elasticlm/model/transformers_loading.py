"""Loading Hugging Face models from local folders, with errors of one line."""

from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from elasticlm.errors import InputError


def load_transformers(folder: str | Path, kind: Any, **options: Any) -> Any:
    """Load a Hugging Face model of the class ``kind`` in fp32; raises InputError on missing or unreadable weights.

    Heads in the checkpoint that ``kind`` does not have are ignored. No code from the folder is run.
    """
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # unused heads in a checkpoint are expected; missing weights are checked
    try:
        model, loading = kind.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, trust_remote_code=False, **options
        )
    except Exception as error:  # truncated files, wrong shapes: the library's own words
        raise InputError(f"{folder}: its weights cannot be read ({error})") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"{folder}: no weights for {missing[0]!r} ({len(missing)} missing)")
    return model.eval()
