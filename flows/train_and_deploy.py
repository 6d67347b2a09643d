"""A training pipeline that ends with its model serving, unless that is worse: put your own training in.

It needs scikit-learn, skl2onnx and onnxruntime, and the `python3` of the PATH with them.
"""

from pathlib import Path

import httpx
from prefect import flow, get_run_logger
from prefect.assets import materialize

from prefect_dstack import Endpoint, Evaluation, Release, deploy_service
from prefect_dstack.errors import RejectedError


def train(model: Path, trees: int, depth: int) -> None:
    """Train a classifier on data that is made here, and write it as ONNX."""
    from skl2onnx import to_onnx
    from sklearn.datasets import make_moons
    from sklearn.ensemble import RandomForestClassifier

    rows, labels = make_moons(2000, noise=0.2, random_state=0)
    forest = RandomForestClassifier(trees, max_depth=depth, random_state=0).fit(rows, labels)
    onnx = to_onnx(forest, rows[:1].astype("float32"), options={"zipmap": False})
    model.write_bytes(onnx.SerializeToString())


def accuracy(url: str) -> float:
    """Ask a replica for the classes of rows that no training has seen, and return how many are right."""
    from sklearn.datasets import make_moons

    rows, labels = make_moons(1000, noise=0.2, random_state=1)
    answer = httpx.post(f"{url}/predict", json={"rows": rows.tolist()}, timeout=60)
    predicted = answer.raise_for_status().json()["labels"]
    return sum(is_so == said for is_so, said in zip(labels, predicted, strict=True)) / len(predicted)


def no_worse(release: Release) -> Evaluation:
    """Compare a new revision with the one that serves, before it gets a request."""
    new = accuracy(release.candidate_url)
    old = accuracy(release.serving_url) if release.serving_url else 0.8
    return Evaluation(
        passed=new >= old - 0.01,
        score=new,
        reason=f"accuracy {new:.3f}, at least {old - 0.01:.3f}",
        table=[{"revision": release.revision, "accuracy": new}],
    )


@flow(name="train-and-deploy")
def train_and_deploy(
    directory: str = "examples/moons", name: str | None = None, trees: int = 20, depth: int = 8
) -> Endpoint:
    """Train a model, and let it take over from the one that serves if it is no worse.

    Args:
        directory: Holds `moons.dstack.yml` and the application; the model is written there.
        name: The name of the service; default: the configuration's.
        trees: How many trees the model has.
        depth: How deep they are.

    Returns:
        Where it answers.
    """
    model = Path(directory, "model.onnx").absolute()
    before = model.read_bytes() if model.exists() else None
    materialize(f"file://{model}", name="train")(train)(model, trees, depth)
    try:
        return deploy_service(
            Path(directory, "moons.dstack.yml"),
            name=name,
            evaluate=no_worse,
            model_asset=str(model),
            annotations={"trees": trees, "depth": depth},
        )
    except RejectedError:
        get_run_logger().warning("the model that serves stays")
        # Whoever deploys the directory next shall not deploy what was rejected.
        model.unlink() if before is None else model.write_bytes(before)
        raise


if __name__ == "__main__":
    train_and_deploy()
