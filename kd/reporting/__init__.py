"""What a run showed, for a reader: JSON, Markdown and one HTML page."""
