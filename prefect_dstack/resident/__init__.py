"""The resident controller: watches all services, and starts flow runs for what must change."""
