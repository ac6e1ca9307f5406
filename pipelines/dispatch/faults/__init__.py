"""What follows from errors: retries, faults of the set-up, parameters that a provider refuses."""
