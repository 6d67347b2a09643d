"""Answers `POST /predict` with the species of an iris."""

from typing import Annotated

import joblib
from fastapi import FastAPI
from pydantic import BaseModel, Field

trained = joblib.load("model.joblib")
app = FastAPI(title="Irises")


class Iris(BaseModel):
    """Length and width of its sepal and of its petal, in cm."""

    features: Annotated[list[float], Field(min_length=4, max_length=4)]


@app.get("/health")
def health() -> dict[str, int]:
    return {"seed": trained["seed"]}


@app.post("/predict")
def predict(iris: Iris) -> dict[str, str | float]:
    probabilities = trained["model"].predict_proba([iris.features])[0]
    best = probabilities.argmax()
    return {"species": trained["species"][best], "probability": round(float(probabilities[best]), 3)}
