"""The command line, `prefect-dstack`."""
