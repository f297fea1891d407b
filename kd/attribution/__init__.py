"""Which input tokens decided the teacher's answer."""
