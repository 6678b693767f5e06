# make help: what there is. GNU make; each recipe is one sh script that ends at the first command that fails.
SHELL := /bin/sh
.SHELLFLAGS := -ec
.ONESHELL:
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
SOCKET ?= /run/deliver/deliver.sock
VENV := .venv
BIN := $(VENV)/bin

# Debian's own Python first: one below a home directory cannot be read by the unprivileged users mail is delivered as.
PYTHON := $(shell for python in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do \
	path=$$(command -v $$python) && $$path -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$path && break; \
	done 2>/dev/null)

# What the tests run for real: a program (or a file with its path) and, behind the colon, the Debian package that has it.
PROGRAMS := clamd:clamav-daemon clamdscan:clamdscan spamd:spamd spamc:spamc /usr/lib/dovecot/imap:dovecot-imapd \
	deliverquota.courier:courier-base strace:strace maildrop:maildrop clamscan:clamav rspamd:rspamd \
	c-icap:c-icap /usr/lib/$(shell uname -m)-linux-gnu/c_icap/virus_scan.so:libc-icap-mod-virus-scan \
	7zz:7zip xorriso:xorriso gcab:gcab bsdtar:libarchive-tools uuencode:sharutils tnef:tnef sievec:dovecot-sieve procmail:procmail \
	mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs groff:groff-base

# $(call apt-install,PACKAGES): as root, on Debian, without starting any service that comes with them
# (invoke-rc.d(8): policy-rc.d exiting 101 forbids it).
define apt-install
	echo "setup: apt-get install" $(1)
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $$policy ]; then
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
		printf '#!/bin/sh\nexit 101\n' >$$policy
		chmod 755 $$policy
	fi
	export DEBIAN_FRONTEND=noninteractive
	words=$$(apt-get -q update 2>&1 && apt-get -qy --no-install-recommends install $(1) 2>&1) || {
		echo "$$words" >&2
		exit 1
	}
endef

# $(call virtual-environment,DIRECTORY,LOCK FILE,PIP'S WORDS FOR THIS PROJECT,WHAT TO REMOVE AFTERWARDS): the locked
# packages and this project. What builds is there only meanwhile, locked as well, instead of pip's own unpinned choice.
define virtual-environment
	umask 022
	if ! '$(1)/bin/python' -I -c 'import pip' 2>/dev/null; then
		echo "venv: making $(1) with $(PYTHON)"
		$(PYTHON) -I -m venv --clear '$(1)'
	fi
	echo "venv: installing the packages of $(2) into $(1)"
	pip() { '$(1)/bin/python' -I -m pip --disable-pip-version-check -q "$$@"; }
	export PIP_ROOT_USER_ACTION=ignore
	pip install --require-hashes -r requirements-build.lock
	pip install --require-hashes --no-build-isolation --use-pep517 -r $(2)
	pip install --no-build-isolation --no-deps --force-reinstall $(3)
	pip uninstall -y $(4)
endef

# $(call tests): the set-up. Root's tests deliver mail as nobody, who must be able to read what he runs: where he cannot,
# as below /root, they run in a copy that is removed afterwards.
define tests
	if [ "$$(id -u)" = 0 ] && ! setpriv --reuid=65534 --regid=65534 --clear-groups test -r '$(CURDIR)/Makefile'; then
		copy=$$(mktemp -d)
		trap 'rm -rf "$$copy"' EXIT
		chmod 755 "$$copy"
		echo "$@: nobody cannot read $(CURDIR); copied to $$copy"
		mkdir "$$copy/deliver"
		tar -c --exclude='./$(VENV)' . | tar -x -C "$$copy/deliver"
		if [ -e ../shared ]; then ln -s '$(abspath ../shared)' "$$copy/shared"; fi
		$(MAKE) --no-print-directory -C "$$copy/deliver" $@
		exit
	fi
	$(MAKE) --no-print-directory setup
endef

.PHONY: help
help:
	@echo 'make test                        set up what is needed, then run the tests'
	echo 'make demo                        deliver a few messages and show what happened'
	echo 'make install PREFIX=/usr/local   install deliver and quarantine, with their own Python packages'
	echo 'make check                       ruff, mypy --strict, bandit'
	echo 'make test-faults                 the slow tests: failing system calls, killed processes'
	echo 'make sweep                       every fault at every system call; an hour or so'
	echo 'make bench                       measure'
	echo 'make lock                        pin the newest packages that pyproject.toml allows'
	echo 'make clean                       remove what was made here'

.PHONY: python
python:
	@if [ -z '$(PYTHON)' ]; then
		echo 'setup: deliver needs Python 3.11 or newer as python3' >&2
		exit 1
	fi
	$(PYTHON) -I -c 'import ensurepip' 2>/dev/null && exit
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo 'setup: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv' >&2
		exit 1
	fi
	$(call apt-install,python3-venv)

.PHONY: programs
programs:
	@missing=
	for program in $(PROGRAMS); do
		[ -e $${program%%:*} ] || PATH=$$PATH:/usr/sbin:/sbin command -v $${program%%:*} >/dev/null ||
			missing="$$missing $${program#*:}"
	done
	[ -n "$$missing" ] || exit 0
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "setup: tests that need one of these are skipped; on Debian: apt-get install$$missing" >&2
		exit 0
	fi
	$(call apt-install,$$missing)

.PHONY: setup
setup: programs $(VENV)/installed

$(VENV)/installed: requirements-build.lock requirements-dev.lock pyproject.toml bin/deliver bin/quarantine | python
	@$(call virtual-environment,$(VENV),requirements-dev.lock,-e .,setuptools)
	touch $@

.PHONY: test
test:
	@$(call tests)
	echo 'test: pytest'
	$(BIN)/python -m pytest -q -m 'not faults'

.PHONY: test-faults
test-faults:
	@$(call tests)
	echo 'test-faults: pytest'
	$(BIN)/python -m pytest -q -m faults || [ $$? = 5 ] # 5: there is none

.PHONY: sweep
sweep:
	@$(call tests)
	echo 'sweep: pytest, every fault at every system call'
	DELIVER_FULL_SWEEP=1 $(BIN)/python -m pytest -q -m faults tests/test_faults_sweep.py tests/test_faults_powercut.py \
		tests/test_faults_memory.py

# BENCH=full measures longer and more.
.PHONY: bench
bench: PROGRAMS += /usr/lib/dovecot/lmtp:dovecot-lmtpd
bench: setup
	@echo 'bench: what rules cost'
	$(BIN)/python bench/curves.py
	$(BIN)/python bench/conditions.py
	$(BIN)/python bench/bounces.py
	echo 'bench: side by side'
	$(BIN)/python bench/run.py

.PHONY: check
check: $(VENV)/installed
	@echo 'check: ruff'
	$(BIN)/ruff check -q
	echo 'check: mypy --strict'
	$(BIN)/mypy --no-error-summary
	echo 'check: pip, that the locked packages fit together'
	$(BIN)/python -I -m pip --disable-pip-version-check check >/dev/null
	echo 'check: bandit'
	$(BIN)/bandit -q -c pyproject.toml -r deliver quarantine

.PHONY: demo
demo: setup
	@$(BIN)/python tests/demo.py

.PHONY: install
install: python
	@case '$(PREFIX)' in
	/*[!A-Za-z0-9_./@%+=,-]*) echo 'install: no blanks or special characters in PREFIX, please' >&2; exit 1 ;;
	/*) ;;
	*) echo 'install: PREFIX must be an absolute path' >&2; exit 1 ;;
	esac
	umask 022
	mkdir -p '$(PREFIX)/bin' '$(PREFIX)/lib' '$(PREFIX)/share/deliver'
	$(call virtual-environment,$(PREFIX)/lib/deliver,requirements.lock,.,-r requirements-build.lock)
	'$(PREFIX)/lib/deliver/bin/python' -I -c 'import py_compile, sys; py_compile.compile(*sys.argv[1:], "client.py",
		doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)' \
		deliver/client.py '$(PREFIX)/lib/deliver/client.pyc' # written beside it and renamed
	for command in deliver quarantine; do
		echo "install: $(PREFIX)/bin/$$command"
		sed 's|^home=$$|home=$(PREFIX)/lib/deliver|; s|^socket=$$|socket=$(SOCKET)|' bin/$$command >'$(PREFIX)/bin/'.$$command.new
		chmod 755 '$(PREFIX)/bin/'.$$command.new
		mv -f '$(PREFIX)/bin/'.$$command.new '$(PREFIX)/bin/'$$command # at once: mail may be arriving
	done
	for file in mailfilter.example.toml README.md CHANGELOG.md $(wildcard docs/*.1 docs/*.5 docs/*.md docs/service/*); do
		case $$file in
		*.[15]) to='$(PREFIX)/share/man/man'$${file##*.} ;;
		docs/service/*) to='$(PREFIX)/share/doc/deliver/docs/service' ;;
		docs/*) to='$(PREFIX)/share/doc/deliver/docs' ;;
		*.md) to='$(PREFIX)/share/doc/deliver' ;;
		*) to='$(PREFIX)/share/deliver' ;;
		esac
		echo "install: $$to/$${file##*/}"
		mkdir -p "$$to"
		cp -f $$file "$$to/"
		chmod u=rwX,go=rX "$$to/$${file##*/}"
	done

.PHONY: lock
lock: python
	@tools=$$(mktemp -d)
	trap 'rm -rf "$$tools"' EXIT
	$(PYTHON) -I -m venv "$$tools"
	"$$tools/bin/pip" install -q uv
	lock() {
		echo "lock: $$1"
		"$$tools/bin/uv" pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes \
			--custom-compile-command 'make lock' -o "$$@"
	}
	lock requirements.lock pyproject.toml
	lock requirements-build.lock --group build -c requirements.lock
	lock requirements-dev.lock --extra dev -c requirements.lock -c requirements-build.lock pyproject.toml

.PHONY: clean
clean:
	@rm -rf $(VENV) dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
