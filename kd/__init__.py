"""Distil a large language model's insights into small models: the library, free of any scheduler."""
