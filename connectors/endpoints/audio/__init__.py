"""What transcription and translation share."""
