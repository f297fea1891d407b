"""Measurements: each script compares side by side in one run and says whether its bars hold."""
