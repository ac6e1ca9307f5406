"""Code that transcription and translation share."""
