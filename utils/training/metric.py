"""Metrics of the `evaluate` library."""

import os

from utils.errors import UsageError
from utils.hub.errors import explain_hub_error


def load_metric(name: str | None):
    """Load a metric by its name on the Hub or the path of a folder; None for None.

    Raises:
        UsageError: the metric cannot be loaded.
    """
    if name is None:
        return None
    import evaluate  # imported here because it takes seconds and few runs need it

    try:
        return evaluate.load(name, experiment_id=str(os.getpid()))  # each process keeps its own
    except Exception as error:  # of many types: the name, the network, or the metric's own imports may be wrong
        raise UsageError(f"--metric {name}: cannot be loaded: {explain_hub_error(error, name)}") from error
