# All commands of the development. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := $(CURDIR)/.venv
COLLECTIONS := $(CURDIR)/.collections
LINK := $(COLLECTIONS)/ansible_collections/crashcart/fleet
BUILD := $(CURDIR)/build
STAGED := $(BUILD)/ansible_collections/crashcart/fleet
PYTHON ?= $(shell tools/find_python.sh)
# Real interpreters, not version managers' shims, which are also there for versions that are not installed.
PYTHON_FOLDERS := $(shell tools/find_python.sh --folders)
PACKAGES := busybox-static ca-certificates git libseccomp2 openssh-client patchelf python3 python3-venv squashfs-tools strace \
    trace-cmd util-linux
# Unit and sanity tests run on some Pythons, and on all of them with CRASHCART_TESTS=all in the environment, as `make test-all` sets it.
ALL := $(filter all,$(CRASHCART_TESTS))
TARGET_PYTHONS := $(if $(ALL),3.8 3.9 3.10 3.11 3.12 3.13,3.8 3.13)
OWN_PYTHON = $$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
MYPY = cd $(COLLECTIONS) && MYPYPATH=$(COLLECTIONS) mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(BUILD)/mypy \
    $(foreach folder,module_utils plugin_utils action callback connection filter inventory,-p ansible_collections.crashcart.fleet.plugins.$(folder))
export PATH := $(VENV)/bin:$(PYTHON_FOLDERS):$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(COLLECTIONS)
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup demo quick test test-all lint format unit sanity integration builds package readme fleet fleet-up fleet-ping fleet-ssh fleet-down fleet-clean fleet-bench engines engines-clean matrix matrix-page controllers soak bench bench-fleet bench-engines release clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup: .venv/ready ## Install what development and the demo need (Debian and PyPI packages, a virtual environment)

.venv/ready: requirements.lock Makefile | $(LINK)
	tools/install_packages.sh $(PACKAGES)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

# By this link Ansible and Python find the checkout as a collection.
$(LINK):
	mkdir -p $(@D)
	ln -s ../../.. $@

# The demo needs only the users' packages. An environment for development has them, too.
USERS := $(if $(wildcard .venv/ready),,$(CURDIR)/.venvs/users)

.venvs/users/ready: requirements.txt requirements.lock | $(LINK)
	tools/install_packages.sh busybox-static ca-certificates libseccomp2 patchelf python3 python3-venv squashfs-tools strace util-linux
	$(PYTHON) -m venv .venvs/users
	.venvs/users/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c requirements.lock
	touch $@

demo: $(if $(USERS),.venvs/users/ready) ## Play the diagnosis of a classic fault on this machine, and leave it clean
	PATH=$(if $(USERS),$(USERS)/bin:)$$PATH demo/run.sh

test: ## Run all checks that a change has to pass, with a sixth of the integration tests (PARTS=6), another with each commit
	PARTS=$(PARTS) tests/run.sh

test-all: ## Run all checks, with all integration tests, long sweeps in full, and the fleet of virtual machines
	CRASHCART_TESTS=all tests/run.sh
	$(MAKE) --no-print-directory fleet

quick: setup ## Check style, types and unit tests on this Python while you work, without the long sweeps
	@tests/quick.sh $(BUILD) '$(MYPY)' "$(K)"

lint: setup ## Check style, types, licences and documentation
	ruff format --check --quiet
	ruff check --quiet
	$(MYPY)
	python tools/check_shape.py plugins
	python tools/check_docstrings.py plugins tools tests demo
	reuse lint --quiet
	antsibull-changelog lint
	tools/stage_collection.sh $(BUILD)
	cd $(STAGED) && ANSIBLE_COLLECTIONS_PATH=$(BUILD) ansible-lint --profile production --offline -q
	cd $(STAGED) && ANSIBLE_COLLECTIONS_PATH=$(BUILD) antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=self .

format: setup ## Format the code
	ruff format --quiet
	ruff check --quiet --fix

sanity: setup ## Run ansible-test's sanity tests
	tools/stage_collection.sh $(BUILD)
	python tools/prepare_ansible_test.py 24.2
	cd $(STAGED) && ansible-test sanity --local --color no $(if $(ALL),,--python $(OWN_PYTHON)) --skip-test pylint
	cd $(STAGED) && ansible-test sanity --local --color no --test pylint --exclude tests/  # ruff looks at these

unit: setup ## Run the unit tests on Pythons of controllers and targets; K=expression runs some of them on this Python
ifdef K
	python -m pytest -q -p no:cacheprovider -k "$(K)"
else
	tools/stage_collection.sh $(BUILD)
	python tools/prepare_ansible_test.py 24.2
	tests/unit.sh $(BUILD) $(TARGET_PYTHONS)
endif

integration: setup ## Run the tests with a real engine, containers and sshd; TARGET=name, K=expression, KEEP=1 keeps the engine
ifneq ($(K)$(KEEP),)
	KEEP=$(KEEP) tests/integration/some.sh $(BUILD) "$(TARGET)" "$(K)"
else
	tools/stage_collection.sh $(BUILD)
	tests/integration/with_engine.sh $(BUILD)/test-engine \
	    ansible-test integration --local --python $(OWN_PYTHON) \
	    --allow-root --allow-destructive --color no $(TARGET)
endif

fuzz: setup ## Analyse damaged captures: make fuzz N=1000000; SEED=… makes a case again, BOUNDS=1 checks each index
	PYTHONPATH=$(COLLECTIONS) python tests/fuzz/run.py $(or $(N),10000) --keep $(BUILD)/fuzz $(if $(SEED),--seed $(SEED)) $(if $(BOUNDS),--bounds)
# In a long run, a tenth of the cases has checks, which cost a minute for the compiler.
	if [ $(or $(N),10000) -gt 10000 ] && [ -z "$(BOUNDS)" ]; then \
	    PYTHONPATH=$(COLLECTIONS) python tests/fuzz/run.py $$(($(or $(N),10000) / 10)) --keep $(BUILD)/fuzz $(if $(SEED),--seed $(SEED)) --bounds; fi

builds: setup ## Run the tests of image builds, which need no engine
	cd tests/builds && PYTHONPATH=$(COLLECTIONS) python -m pytest -c ../integration/pytest.ini --rootdir . .

package: setup ## Build the collection, install it elsewhere, and check it by Galaxy's importer
	tests/package.sh $(BUILD)

readme: setup ## Run the README's commands, and compare their output with the README's
	tests/integration/with_engine.sh $(BUILD)/readme-engine env PYTHONPATH=$(COLLECTIONS) python $(CURDIR)/tests/readme.py

fleet: setup ## Run the tests on three real hosts: Debian guests with their own kernels, engines and ssh; with PARTS=3 a third of the files
	$(if $(PARTS),part=$$(tests/part.sh $(PARTS)); echo "== files of tests of the fleet: $$part"; export CRASHCART_TESTS=$$part;) \
	    cd tests/fleet && PYTHONPATH=$(COLLECTIONS) python -m pytest -c pytest.ini

engines: setup ## Run the tests of three generations of engines: those of Debian 12, 13 and unstable, with their Pythons
	cd tests/engines && PYTHONPATH=$(COLLECTIONS) python -m pytest -c pytest.ini $(if $(K),-k "$(K)")

engines-clean: ## End what tests of engines that were killed have left, and remove the archives that their hosts are made from
	python3 tests/engines/clean.py

matrix: setup controllers ## Run the tests of later controllers, kernels and runtimes, and of hardened hosts
	cd tests/fleet && PYTHONPATH=$(COLLECTIONS) python -m pytest -c pytest.ini test_hardened.py test_releases.py

matrix-page: ## Write docs/matrix.md from what the last runs of engines, matrix and controllers have seen
	python3 tools/write_matrix.py

controllers: setup ## Run unit tests, sanity tests and playbooks with later versions of ansible-core and Python; K=expression runs some
	tests/integration/with_engine.sh $(BUILD)/controllers-engine env -C $(CURDIR)/tests/controllers PYTHONPATH=$(COLLECTIONS) \
	    python -m pytest -c pytest.ini $(if $(K),-k "$(K)")

soak: setup ## Run a schedule over three guests for ten minutes in which much goes wrong; CRASHCART_SOAK_MINUTES=60 runs it for longer
	cd tests/fleet && PYTHONPATH=$(COLLECTIONS) python -m pytest -c pytest.ini -s test_soak.py

fleet-up: setup ## Start guests for experiments; N=3 sets their number, RELEASES="bookworm trixie sid" the release of each
	python tests/fleet/fleet.py up $(or $(N),3) $(RELEASES)

fleet-ping: setup ## Print a line with `pong` for each guest that runs
	python tests/fleet/fleet.py ping

fleet-down: ## End the guests
	python3 tests/fleet/fleet.py down

fleet-clean: ## End the guests and remove the snapshot that they are cloned from
	python3 tests/fleet/fleet.py clean

fleet-bench: setup ## Measure the guests: start, memory, a ping compared with crashcart_info
	python tests/benchmarks/guests.py

# In `make fleet-ssh HOST` the second word is a host's name, and not a target.
fleet-ssh: ## Open a root shell on a guest: make fleet-ssh host2
	python3 tests/fleet/fleet.py ssh $(filter-out $@,$(MAKECMDGOALS))

host%:
	@:

bench: setup ## Measure ratios within one run, and print tables; BENCH="push calls" runs some measurements
	tests/integration/with_engine.sh $(BUILD)/bench-engine env PYTHONPATH=$(COLLECTIONS) python $(CURDIR)/tests/benchmarks/run.py $(BENCH)

bench-fleet: ## Measure playbooks on 1, 10, 50 and 200 hosts, which are names of this machine, compared with a ping
	$(MAKE) --no-print-directory bench BENCH=hosts

bench-engines: setup ## Measure three generations of engines: what a container costs beside the engine's own exec
	PYTHONPATH=$(COLLECTIONS) python tests/benchmarks/engines.py

release: setup ## Make a release of the committed state, commit and tag it: make release VERSION=1.2.3
	tools/release.sh $(BUILD) "$(VERSION)"

clean: ## Remove what the other targets made in this folder
	rm -rf $(VENV) .venvs $(COLLECTIONS) $(BUILD) .ansible .mypy_cache .ruff_cache .pytest_cache
