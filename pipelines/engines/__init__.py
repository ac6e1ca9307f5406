"""Where a run's requests are sent from: this process or Ray workers."""
