# make demo: deblend the example image.   make test: lint, types and tests.
# Both work in an own environment, .venv; PYTHON=python3.12 chooses the Python it is made with.
PYTHON ?= python3
PHOTUTILS_PYTHON ?= .venv/bin/python
RUN = .venv/bin/python -m
PIP = $(RUN) pip --disable-pip-version-check install --quiet

.PHONY: demo test lint fuzz oldest audit docs benchmark clean

demo: .venv/installed
	$(RUN) galsep deblend examples/field.fits.fz --output demo-output --preview --overwrite

test: lint
	$(RUN) pytest -n 2 --dist worksteal

lint: .venv/installed-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

# An hour: 10,000 spoilt files in one process, 200 through the command.
fuzz: .venv/installed-dev
	$(RUN) tests.fuzz.run

# With the lowest versions that pyproject.toml allows; TORCH=--torch has torch (5 GB) among them.
oldest: .venv/installed-dev
	$(PIP) uv
	.venv/bin/python tests/oldest.py $(TORCH)

# Known vulnerabilities of what is installed; asks osv.dev.
audit: .venv/installed-dev
	$(PIP) pip-audit
	$(RUN) pip_audit --skip-editable --vulnerability-service osv

docs: .venv/installed-docs
	$(RUN) mkdocs build --strict

benchmark: .venv/installed
	.venv/bin/python benchmarks/startup.py
	.venv/bin/python benchmarks/simulate.py
	.venv/bin/python benchmarks/deblend.py --photutils-python "$(PHOTUTILS_PYTHON)"

clean:
	rm -rf .venv demo-output site fuzz-failures

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	@echo "installing galsep and what it needs into .venv (minutes, 5.5 GB)"
	$(PIP) --editable .
	@touch $@

.venv/installed-dev .venv/installed-docs: .venv/installed-%: .venv/installed
	@echo "installing the tools of '$*' into .venv"
	$(PIP) --editable ".[$*]"
	@touch $@
