"""The import path of `init_xlnet` in published model cards; the code is in utils/models/xlnet_adapters.py."""

from utils.models.xlnet_adapters import init_xlnet


__all__ = ["init_xlnet"]
