"""Ten claims about these algorithms, each tried in miniature; predictions.md was there before the first run."""
