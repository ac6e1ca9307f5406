"""Steering of a run in progress: pause, resume, drain, and the limits that apply until its end."""
