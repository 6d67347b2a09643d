"""Amazon EC2 on this machine: moto's API, and real hosts that boot behind it."""
