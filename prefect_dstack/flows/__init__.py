"""The flows: compositions of tasks that a user runs, deploys or calls from flows of their own."""
