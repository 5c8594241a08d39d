PYTHON ?= python3
# transformers 4.57 with adapters, or, with TRANSFORMERS=5, version 5. Each has an environment of its own.
SUFFIX := $(if $(filter 5,$(TRANSFORMERS)),-transformers5)
VENV := .venv$(SUFFIX)

.PHONY: demo test tests lint style clean

demo: $(VENV)/installed
	$(VENV)/bin/python run_clm.py recipes/demo.yaml

test: $(VENV)/installed lint tests

# One process per core, up to four; each runs whole files of tests.
tests: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		$(if $(SUFFIX),-m "not any_version")

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

style: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

.venv/installed: requirements.txt
.venv-transformers5/installed: requirements-transformers5.txt
.venv/installed .venv-transformers5/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf .venv .venv-transformers5 outputs
