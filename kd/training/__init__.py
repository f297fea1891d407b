"""How a student learns label and rationale together, independent of the engine that runs it."""
