"""Emulated speech, transcription and translation."""
