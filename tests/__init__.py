"""Tests of prefect-dstack."""
