"""Observe, decide, act: how a service gets from what runs to what is wanted, under Prefect or without it."""
