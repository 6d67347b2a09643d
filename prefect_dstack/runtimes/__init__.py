"""What starts a workload on a machine."""
