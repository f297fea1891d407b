"""What a run will cost, said before it is paid for: from a sample of the corpus, arithmetic, and a measured probe."""
