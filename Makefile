PYTHON ?= python3
# The line of transformers: nothing for 4.57 with adapters, TRANSFORMERS=5 for 5, each in an environment of its own.
LINE := $(if $(filter 5,$(TRANSFORMERS)),-transformers5)
VENV := .venv$(LINE)

.PHONY: demo test tests lint style clean

demo: $(VENV)/installed
	$(VENV)/bin/python run_clm.py recipes/demo.yaml

test: $(VENV)/installed lint tests

tests: $(VENV)/installed
	$(VENV)/bin/python -m pytest

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

style: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/installed: requirements$(LINE).txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf .venv .venv-transformers5 outputs
