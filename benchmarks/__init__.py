"""Measurements that back what the README says; each prints the table that it claims."""
