"""What is kept in the Prefect API: records, tokens, secrets, locks, and which flow runs are alive."""
