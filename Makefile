# Two commands matter: `make demo` and `make test`. Both create `.venv` first, from the pinned and
# hashed list in constraints.txt: with uv where it is installed, else with python3 -m venv and pip.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PREFIX ?= /opt/voiced
DESTDIR ?=
UNITDIR ?= /etc/systemd/system
VENV := .venv
BIN := $(VENV)/bin
MSLITE := .venv-mindspore

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' \
	  | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/.runtime: constraints.txt pyproject.toml tools/make-venv
	@tools/make-venv $(VENV) runtime
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@tools/make-venv $(VENV) dev
	@touch $@

$(VENV)/.peers: $(VENV)/.runtime constraints-peers.txt
	@tools/make-venv $(VENV) peers
	@touch $@

.PHONY: venv
venv: $(VENV)/.dev ## create .venv with everything that development needs

.PHONY: demo
demo: $(VENV)/.runtime ## real speech through the real daemon, and one line of figures
	@$(BIN)/voiced demo

.PHONY: peers
peers: $(VENV)/.peers ## add what `voiced bench peers` compares with

$(VENV)/.peers-live: $(VENV)/.peers constraints-peers-live.txt
	@tools/make-venv $(VENV) peers-live
	@touch $@

.PHONY: peers-live
peers-live: $(VENV)/.peers-live ## add the servers of `voiced bench peers --live`

.PHONY: models
models: $(VENV)/.runtime ## fetch and build the default models
	@$(BIN)/voiced model pull

.PHONY: test-models
test-models: models
	@$(BIN)/voiced model build whisper-base-fp32

.PHONY: mindspore
mindspore: $(MSLITE)/.done ## create .venv-mindspore: MindSpore Lite (needs a Python 3.7)

$(MSLITE)/.done: constraints-mindspore.txt tools/make-mindspore
	@tools/make-mindspore $(MSLITE)
	@touch $@

.PHONY: lint
lint: $(VENV)/.dev ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: test
test: lint test-models ## lint, types and the whole test suite
	VOICED_REQUIRE_MODEL=1 $(BIN)/pytest

.PHONY: install
install: ## install into PREFIX (default /opt/voiced), with systemd units; DESTDIR= for packaging
	tools/install "$(PREFIX)" "$(DESTDIR)" "$(UNITDIR)"

.PHONY: audit
audit: $(VENV)/.dev ## licences, withdrawn versions and known holes of what we depend on
	tools/audit

.PHONY: deb
deb: ## build a Debian package into dist (DEB_ARCH=arm64 for the other machine)
	@tools/make-deb dist

.PHONY: pin
pin: ## write both constraints files anew (needs uv)
	tools/pin

.PHONY: clean
clean: ## remove what this file made
	rm -rf $(VENV) $(MSLITE) dist build-out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find audio engine daemon plugins bench tests -name __pycache__ -type d -prune -exec rm -rf {} +
