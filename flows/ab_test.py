"""An A/B test: two revisions share the requests, and the one whose answers are better serves on."""

import asyncio
from collections import Counter

import httpx
from prefect import flow, get_run_logger

from prefect_dstack import Endpoint, adeploy_service, aget_endpoint, aget_service, apromote_service


async def ask(url: str, release: asyncio.Task[Endpoint], count: int) -> dict[str, float]:
    """Ask until each revision has answered so often, and return the share of right answers of each."""
    from sklearn.datasets import make_moons

    rows, labels = make_moons(1000, noise=0.2, random_state=2)
    answered: Counter[str] = Counter()
    right: Counter[str] = Counter()
    # Each request on a connection of its own, as from users of their own.
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        while not release.done() and (len(answered) < 2 or min(answered.values()) < count):
            number = answered.total() % len(rows)
            answer = await client.post(f"{url}/predict", json={"rows": [rows[number].tolist()]})
            body = answer.raise_for_status().json()
            answered[body["revision"]] += 1
            right[body["revision"]] += body["labels"] == [labels[number]]
    return {revision: right[revision] / answered[revision] for revision in answered}


async def promoted(name: str, release: asyncio.Task[Endpoint]) -> Endpoint:
    """Promote the new revision as soon as it waits for that."""
    while not release.done() and (await aget_service(name)).state != "waiting":
        await asyncio.sleep(1)  # the comparison of the canary goes on for its duration
    if not release.done():
        await apromote_service(name)
    return await release


@flow(name="ab-test")
async def ab_test(
    configuration: str = "examples/moons/ab.dstack.yml",
    name: str = "moons",
    count: int = 200,
    margin: float = 0.01,
) -> Endpoint:
    """Deploy a revision beside the one that serves, and keep the better one.

    Args:
        configuration: The service, whose rollout is a canary that waits: its weight is the new one's share.
        name: Its name; it serves already.
        count: How many answers of each revision are compared.
        margin: How much more of the new revision's answers must be right.

    Returns:
        Where the better revision answers.
    """
    before = await aget_endpoint(name)
    release = asyncio.create_task(adeploy_service(configuration, name=name))
    try:
        accuracy = await ask(before.url, release, count)
        old = accuracy.pop(str(before.revision), 0.0)
        new = max(accuracy.values(), default=0.0)
        get_run_logger().info("%s: %.3f of the old answers were right, %.3f of the new", name, old, new)
        if release.done() or new >= old + margin:
            return await promoted(name, release)
    finally:
        # Whoever cancels a deployment takes it back: the old revision has all requests again.
        release.cancel()
        await asyncio.wait([release])
    return await aget_endpoint(name)


if __name__ == "__main__":
    asyncio.run(ab_test())
