"""The Hugging Face Hub: names, errors and uploads.

What every script uses is imported here; the rest comes from the modules.
"""

from utils.hub.upload import prepare_upload


__all__ = ["prepare_upload"]
