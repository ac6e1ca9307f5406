"""Commands that check, run and steer jobs."""
