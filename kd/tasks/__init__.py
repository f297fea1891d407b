"""One file per data set: how its records become typed examples."""
