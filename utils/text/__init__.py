"""Where documents come from: the Hub, files, saved data sets and streams."""
