"""Certificates of gateways: which are needed, where they come from, and when they are renewed."""
