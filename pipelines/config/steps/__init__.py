"""Steps of a job file that send no request."""
