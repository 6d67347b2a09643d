"""The Prefect tasks: one for each action on the world."""
