"""What machines cost: on demand from the Pricing API, spot from the spot price history."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from prefect_dstack.backends.aws.cache import Cache
from prefect_dstack.backends.aws.clients import Aws
from prefect_dstack.backends.base import Report
from prefect_dstack.errors import ProvisioningError

__all__ = ["on_demand_prices", "read_price", "spot_prices"]

# The Pricing API answers for all regions, but only from a few of them.
PRICING_REGION = "us-east-1"
ON_DEMAND_AGE = 24 * 3600.0
SPOT_AGE = 600.0

LINUX_ON_SHARED_HARDWARE = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
}


def on_demand_prices(aws: Aws, cache: Cache, region: str, report: Report) -> dict[str, float]:
    """Return the prices of Linux machines on demand.

    Args:
        aws: The account.
        cache: Keeps the answer for a day.
        region: Where.
        report: Told if the prices cannot be had.

    Returns:
        US dollars an hour by instance type; empty if the prices cannot be had.
    """

    def fetch() -> dict[str, float]:
        filters = [
            {"Type": "TERM_MATCH", "Field": field, "Value": value}
            for field, value in {**LINUX_ON_SHARED_HARDWARE, "regionCode": region}.items()
        ]
        # A page is a list of texts, not of mappings; `pages` does not mind.
        products: Iterable[Any] = aws.pages(
            PRICING_REGION, "pricing", "get_products", "PriceList", ServiceCode="AmazonEC2", Filters=filters
        )
        return dict(price for product in products if (price := read_price(json.loads(product))))

    try:
        prices: dict[str, float] = cache.get(f"prices-{region}", ON_DEMAND_AGE, fetch)
    except ProvisioningError as error:
        report(f"aws: {region}: on-demand prices unknown: {error}")
        return {}
    return prices


def read_price(product: Mapping[str, Any]) -> tuple[str, float] | None:
    """Read one product of the Pricing API.

    Args:
        product: Parsed JSON.

    Returns:
        Instance type and US dollars an hour; None if it has no hourly price.
    """
    with contextlib.suppress(KeyError, TypeError, ValueError):
        name = product["product"]["attributes"]["instanceType"]
        for term in product["terms"]["OnDemand"].values():
            for dimension in term["priceDimensions"].values():
                price = float(dimension["pricePerUnit"]["USD"])
                if dimension["unit"] == "Hrs" and price > 0:
                    return name, price
    return None


def spot_prices(aws: Aws, cache: Cache, region: str, report: Report) -> dict[str, dict[str, float]]:
    """Return the current spot prices of Linux machines.

    Args:
        aws: The account.
        cache: Keeps the answer for ten minutes.
        region: Where.
        report: Told if the prices cannot be had.

    Returns:
        US dollars an hour by instance type and zone; empty if the prices cannot be had.
    """

    def fetch() -> dict[str, dict[str, float]]:
        latest: dict[str, dict[str, float]] = {}
        for entry in aws.pages(
            region,
            "ec2",
            "describe_spot_price_history",
            "SpotPriceHistory",
            ProductDescriptions=["Linux/UNIX", "Linux/UNIX (Amazon VPC)"],
            StartTime=datetime.now(UTC),
        ):
            # Newest first: the first one of a zone is the present one.
            latest.setdefault(entry["InstanceType"], {}).setdefault(
                entry["AvailabilityZone"], float(entry["SpotPrice"])
            )
        return latest

    try:
        prices: dict[str, dict[str, float]] = cache.get(f"spot-{region}", SPOT_AGE, fetch)
    except ProvisioningError as error:
        report(f"aws: {region}: spot prices unknown: {error}")
        return {}
    return prices
