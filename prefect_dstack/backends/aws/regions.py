"""Whether a region exists."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from prefect_dstack.backends.aws.clients import Aws
from prefect_dstack.errors import ConfigurationError, ProvisioningError

__all__ = ["check_regions"]


def check_regions(aws: Aws, regions: Iterable[str]) -> None:
    """Refuse regions that do not exist, before a name that does not resolve is waited for.

    Args:
        aws: The account.
        regions: Their names.

    Raises:
        ConfigurationError: If one does not exist.
    """
    known = aws.known_regions()
    for region in regions:
        if region in known:
            continue
        # A region may be younger than the installed botocore.
        try:
            described = aws.call("us-east-1", "ec2", "describe_regions", AllRegions=True)["Regions"]
            known |= {entry["RegionName"] for entry in described}
        except ProvisioningError:
            described = []
        if region not in known:
            close = difflib.get_close_matches(region, sorted(known), 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigurationError(f"AWS has no region {region!r}{hint}", key="regions")
