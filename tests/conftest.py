"""What holds for every test: no token is written for a cluster of a test, and progress bars stay off."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
