"""Prefect's UI, in a real browser."""
