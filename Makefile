PYTHON ?= python3
VENV := .venv

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

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) outputs
