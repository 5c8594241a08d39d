"""Full names of datasets on the Hub."""

from pathlib import Path

import datasets
from huggingface_hub import HfApi

from utils.compat import TRANSFORMERS_5
from utils.hub.errors import is_network_error


def full_dataset_name(name: str, token: str | None, cache_dir: str | None) -> str:
    """Return the dataset's name with its owner, for instance Salesforce/wikitext for wikitext.

    huggingface_hub 2, which comes with transformers 5, cannot read files by a name without an owner. The Hub knows the
    owner; without a network, the name is looked up in the cache and returned unchanged if it is not there. Folders are
    returned unchanged. With transformers 4.57 so is every name, since the Hub redirects requests for the short ones.

    Args:
        token: access token for private datasets.
        cache_dir: cache of the `datasets` library; None for its default.

    Raises:
        Exception: whatever huggingface_hub raises, network errors excepted.
    """
    if not TRANSFORMERS_5 or "/" in name or Path(name).exists():
        return name
    try:
        return HfApi(token=token).dataset_info(name).id
    except Exception as error:
        if not is_network_error(error):
            raise
    cached = list(Path(cache_dir or datasets.config.HF_DATASETS_CACHE).glob(f"*___{name}"))
    return cached[0].name.replace("___", "/") if len(cached) == 1 else name
