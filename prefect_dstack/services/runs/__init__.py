"""Tasks and development environments: run, followed, entered and removed."""
