"""The command line, `prefect-dstack`."""

import gc

# What is imported stays: to look for garbage among it takes a tenth of the time of a command.
gc.set_threshold(50_000, 20, 100)
