"""The stages as jobs: each parses a config, calls `kd`, and writes a manifest."""
