"""Machines that we hold: this one, and those reached over SSH."""
