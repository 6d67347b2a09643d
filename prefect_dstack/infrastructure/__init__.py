"""Backends, machines, runtimes and gateways as objects, resolved once for everything that one run does."""
