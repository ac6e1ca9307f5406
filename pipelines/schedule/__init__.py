"""Scheduled runs: the daemon, and export to cron and systemd."""
