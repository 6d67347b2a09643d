"""The reverse proxy with a public address in front of replicas: HAProxy, its state and its control."""
