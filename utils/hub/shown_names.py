"""Names as a published model card shows them: those of the Hub, and files and folders without their path."""

from pathlib import Path


def hub_name(name: str | None) -> str | None:
    """The name if it is on the Hub, else None: the Hub refuses cards that name a folder as dataset or base model."""
    return None if not name or Path(name).exists() or name.startswith("builtin/") else name


def shown_name(name: str) -> str:
    """The name, without what an absolute path tells of this machine: inside the current folder it becomes relative."""
    path = Path(name)
    if not path.is_absolute():
        return name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
