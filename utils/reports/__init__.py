"""What a run leaves for its readers: model card, plot, summary and sample.

What every script uses is imported here; the rest comes from the modules.
"""

from utils.reports.dry_run import print_dry_run
from utils.reports.model_card import ModelCardText
from utils.reports.report import write_report
from utils.reports.summary import print_counts


__all__ = ["ModelCardText", "print_counts", "print_dry_run", "write_report"]
