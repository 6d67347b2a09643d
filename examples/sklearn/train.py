"""Train a classifier of irises, and write it to model.joblib: `train.py [SEED]`."""

import sys

import joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

irises = load_iris()
seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
train, test, train_species, test_species = train_test_split(
    irises.data, irises.target, test_size=0.3, random_state=seed
)
model = LogisticRegression(max_iter=1000).fit(train, train_species)
joblib.dump({"model": model, "species": list(irises.target_names), "seed": seed}, "model.joblib")
print(f"accuracy {model.score(test, test_species):.2f}")
