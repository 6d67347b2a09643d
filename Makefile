# Every target installs what it needs first. `make test PYTEST="-k rollout"` runs a part of the tests.

BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST ?=

.PHONY: check clean coverage demo docs install llm test test-hosts test-slow

install: $(INSTALLED)

$(INSTALLED): pyproject.toml uv.lock
	python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	VIRTUAL_ENV= $(BIN)/uv sync --quiet --frozen --python $(BIN)/python
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/prefect-dstack apply -f examples/hello.dstack.yml -y
	@echo
	@$(BIN)/python examples/request.py hello
	@echo
	@$(BIN)/prefect-dstack ps
	@echo
	@echo "It goes on serving. Stop it with: $(BIN)/prefect-dstack stop hello -y"

test: $(INSTALLED)
	sh tests/testbed/install.sh
	$(BIN)/python -m pytest -m "not slow and not testbed and not llm" $(PYTEST)

test-slow: $(INSTALLED)
	sh tests/testbed/install.sh
	$(BIN)/python -m pytest -m "slow and not testbed and not llm" $(PYTEST)

test-hosts: $(INSTALLED)
	sh tests/testbed/install.sh
	$(BIN)/python -m pytest -m testbed $(PYTEST)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The rooms that decide without I/O; their tests are fast.
coverage: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not integration and not docker and not testbed and not slow and not llm" \
		tests/domain tests/controller tests/configurations tests/gateways tests/certificates tests/backends \
		--cov=prefect_dstack.domain --cov=prefect_dstack.controller --cov=prefect_dstack.configurations \
		--cov-report=term-missing:skip-covered --cov-fail-under=90 $(PYTEST)

docs: $(INSTALLED)
	$(BIN)/python docs/generate_reference.py

llm: $(INSTALLED)
	VIRTUAL_ENV= $(BIN)/uv sync --quiet --frozen --python $(BIN)/python --group llm

clean:
	rm -rf .venv
