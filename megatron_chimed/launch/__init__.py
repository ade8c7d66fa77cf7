"""Supervises one node of a job: `supervise` restarts `torchrun`, `watchdog` runs one attempt."""
