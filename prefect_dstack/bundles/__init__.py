"""The files of a revision: what they are, and a copy of them that nobody edits."""

from prefect_dstack.bundles.arranging import arrange
from prefect_dstack.bundles.collecting import collect, collect_files
from prefect_dstack.bundles.entries import Bundle, Entry, stored_entries
from prefect_dstack.bundles.git import check_out
from prefect_dstack.bundles.limits import Limit
from prefect_dstack.bundles.storage import BundleStorage
from prefect_dstack.bundles.store import BundleStore

__all__ = [
    "Bundle",
    "BundleStorage",
    "BundleStore",
    "Entry",
    "Limit",
    "arrange",
    "check_out",
    "collect",
    "collect_files",
    "stored_entries",
]
