"""Progress of long steps: a bar on a terminal, log lines if the output goes to a file."""

import logging
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm


logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0


def progress(steps: Iterable[int], total: int | None, description: str, unit: str, shown: bool = True) -> None:
    """Exhaust `steps` and show the progress.

    Args:
        steps: does the work; yields the number of units finished since its last value.
        total: the number of units; None if unknown.
        description: names the work.
        unit: plural noun, such as "documents".
        shown: False to do the work silently.
    """
    options = {"disable": not (shown and sys.stderr.isatty()), "leave": None}  # below another bar, it disappears
    with tqdm(total=total, desc=description, unit=f" {unit}", **options) as bar:
        start = last_line = time.monotonic()
        finished = 0
        for done in steps:
            bar.update(done)
            finished += done
            now = time.monotonic()
            if shown and bar.disable and now - last_line > SECONDS_BETWEEN_LINES:
                last_line = now
                rate = finished / (now - start)
                of_all = "" if total is None else f" of {total:,}"
                eta = "" if total is None else f", ETA {format_duration((total - finished) / rate)}"
                logger.info(
                    "%s: %s%s %s, %s a second%s", description, f"{finished:,}", of_all, unit, f"{rate:,.0f}", eta
                )


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss; negative ones as 0:00:00."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
