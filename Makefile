# Every target installs what it needs first. `make test PYTEST="-k rollout"` runs a part of the tests.

BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST ?=
# Tests share the machine with servers, engines and gateways; only what fails again has failed.
RERUNS := --reruns 2
# Most tests wait for other processes half of the time; a file's tests stay together.
WORKERS ?= 2
DIST ?= dist

.PHONY: check clean coverage demo dist docs help install llm pictures site test test-hosts test-slow

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

install: $(INSTALLED) ## make .venv, with everything that development needs

$(INSTALLED): pyproject.toml uv.lock
	python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	VIRTUAL_ENV= $(BIN)/uv sync --quiet --frozen --python $(BIN)/python
	@touch $@

demo: $(INSTALLED) ## deploy an example, and replace it under load
	@$(BIN)/python examples/demo.py

test: $(INSTALLED) ## run the fast tests
	sh tests/testbed/install.sh
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not testbed and not llm" $(RERUNS) $(PYTEST)

test-slow: $(INSTALLED) ## run the slow tests: minutes
	sh tests/testbed/install.sh
	$(BIN)/python -m pytest -m "slow and not testbed and not llm" $(RERUNS) $(PYTEST)

test-hosts: $(INSTALLED) ## run the tests on real hosts: root on Debian only
	sh tests/testbed/install.sh
	$(BIN)/python -m pytest -m testbed $(RERUNS) $(PYTEST)

check: $(INSTALLED) ## check format, lint, types, import contracts and the site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The rooms that decide without I/O; their tests are fast.
coverage: $(INSTALLED) ## measure the coverage of the packages that decide
	$(BIN)/python -m pytest -q -m "not integration and not docker and not testbed and not slow and not llm" \
		tests/domain tests/controller tests/configurations tests/gateways tests/certificates tests/backends \
		--cov=prefect_dstack.domain --cov=prefect_dstack.controller --cov=prefect_dstack.configurations \
		--cov-report=term-missing:skip-covered --cov-fail-under=90 $(PYTEST)

# The variable silences an advertisement of the theme.
site: $(INSTALLED) ## build the documentation as a site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs: $(INSTALLED) ## generate the reference
	$(BIN)/python docs/generate_reference.py

# Of the Prefect UI in a headless Chromium, and of a terminal, from the tests that look at them.
pictures: $(INSTALLED) ## take the pictures of the documentation anew
	sh tests/testbed/install.sh
	PICTURES=$(CURDIR)/docs/pictures $(BIN)/python -m pytest tests/browser tests/cli/test_recorded.py $(PYTEST)

dist: $(INSTALLED) ## build the wheel and the sdist
	rm -rf $(DIST)
	$(BIN)/uv build --quiet --out-dir $(DIST)

llm: $(INSTALLED) ## install what the tests of the language model need
	VIRTUAL_ENV= $(BIN)/uv sync --quiet --frozen --python $(BIN)/python --group llm

clean: ## remove .venv
	rm -rf .venv
