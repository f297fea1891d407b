"""One file per model family: the only code that knows how a family reads, scores and answers."""
