"""The name under which published model cards import `init_xlnet`; see utils/models/xlnet_adapters.py."""

from utils.models.xlnet_adapters import init_xlnet


__all__ = ["init_xlnet"]
