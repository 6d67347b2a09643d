"""Flows that judge releases, served as Prefect deployments: what a candidate answers says what they do."""

from __future__ import annotations

import json
import time
import urllib.request

from prefect import flow, serve

from prefect_dstack import Evaluation, Release


def greeting(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(json.loads(answer.read())["greeting"])


@flow(persist_result=True)
def judge(release: Release) -> Evaluation | str:
    new = greeting(release.candidate_url)
    old = greeting(release.serving_url) if release.serving_url else "nothing"
    if new == "broken":
        raise RuntimeError("no holdout set")
    if new == "odd":
        return "good"
    while new == "slow":
        time.sleep(0.2)
    return Evaluation(
        passed=new != "bad",
        score=0.9,
        reason=f"{new} after {old}",
        table=[{"revision": release.revision, "weight": release.weight}],
    )


@flow
def forgetful(release: Release) -> bool:
    return False


@flow
def other(service: str) -> bool:
    return True


if __name__ == "__main__":
    serve(*(it.to_deployment("default") for it in (judge, forgetful, other)))  # type: ignore[arg-type]
