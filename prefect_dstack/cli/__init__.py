"""The command line, `prefect-dstack`."""

import atexit
import gc

# What is imported stays until the end: to look for garbage among it, meanwhile and once more at the end,
# takes a third of the time of a command.
gc.set_threshold(50_000, 20, 100)
atexit.register(gc.freeze)
