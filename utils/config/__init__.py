"""The flags: one dataclass for each group, and the parser that reads them."""
