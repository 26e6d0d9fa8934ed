# One command each: make demo, test, test-torch, vulkan, kompute, check, accept, bench, bench-readme, bench-attention, bench-analysis,
# fuzz. The first one sets up .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt
PACKAGING := pyproject.toml setup.py constraints.txt

# More arguments for pytest or the benchmarks: make test ARGS="tests/ir -x"
ARGS ?=
# Processes the tests are shared among. Each of them computes with one thread.
JOBS ?= auto

# The version of torch that test-torch runs the tests with, in an environment of its own.
TORCH ?= 2.11.0
OTHER := .venv-torch-$(TORCH)

# A software driver, the layers that check what is given to it, and what kp is built with.
DEBIAN := mesa-vulkan-drivers libvulkan1 vulkan-validationlayers libvulkan-dev libfmt-dev g++

.PHONY: demo test test-native test-torch vulkan drivers kompute check accept bench bench-readme bench-attention bench-analysis bench-vulkan fuzz clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.examples
	$(RUN) examples/digits.py $(ARGS)

test: $(VENV)/.test vulkan
	$(RUN) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# What is compiled for torch code by default, for native kernels.
test-native: $(VENV)/.test
	AATC_TEST_BACKEND=native $(RUN) -m pytest -n $(JOBS) --dist worksteal tests/compiler $(ARGS)

test-torch: $(OTHER)/.test
	$(OTHER)/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# What the Vulkan tests run on, as far as it can be had here: a driver (on Debian, as root) and the executors wgpu,
# native and kompute. Nothing fails without: tests are skipped, and say why. The wheel of kp is kept in the user's cache
# folder, as are the shaders that Mesa compiles.
vulkan: $(VENV)/.vulkan-ready

$(VENV)/.vulkan-ready: $(VENV)/.test
	@$(MAKE) --no-print-directory drivers || true
	@$(INSTALL) --retries 1 --no-build-isolation -e ".[gpu,vulkan]" \
		|| echo "without the executors wgpu and native: their packages cannot be installed"
	@$(RUN) -m aatc.backends.vulkan.build_kompute && touch $@ || echo "without the executor kompute"

drivers:
	@command -v dpkg >/dev/null || { echo "no Debian: Vulkan drivers are left as they are"; exit 0; }; \
	dpkg -s $(DEBIAN) >/dev/null 2>&1 && exit 0; \
	[ "$$(id -u)" = 0 ] || { echo "not root; Vulkan tests want: apt-get install $(DEBIAN)"; exit 0; }; \
	export DEBIAN_FRONTEND=noninteractive; apt-get update -qq; \
	apt-get install -y -qq --no-install-recommends $(DEBIAN) >/dev/null || echo "some of $(DEBIAN) are missing"

kompute: $(VENV)/.base
	$(RUN) -m aatc.backends.vulkan.build_kompute

# Types are checked on an installed copy; paths in its messages are those of the checkout, through aatc/'s links.
check: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	rm -rf build/lib build/bdist.* build/site
	$(PIP) install --quiet --no-deps --no-build-isolation --target build/site .
	cd build/site && $(abspath $(RUN)) -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p aatc

accept: $(VENV)/.test
	$(RUN) -m pytest --accept $(ARGS)

bench: $(VENV)/.examples
	$(RUN) -m bench.native $(ARGS)

# The README's figures, from what bench measured last.
bench-readme: $(VENV)/.examples
	$(RUN) -m bench.readme $(ARGS)

bench-attention: $(VENV)/.examples
	$(RUN) -m bench.attention $(ARGS)

bench-vulkan: $(VENV)/.examples
	$(RUN) -m bench.vulkan $(ARGS)

bench-analysis: $(VENV)/.examples
	$(RUN) -m bench.analysis $(ARGS)

fuzz: $(VENV)/.test
	HYPOTHESIS_PROFILE=fuzz $(RUN) -m pytest -m hypothesis $(ARGS)

clean:
	rm -rf $(VENV) .venv-torch-* build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch by itself first: then pip takes the CPU build where one is at hand.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch==2.13.0
	@touch $@

$(VENV)/.base: $(VENV)/.torch $(PACKAGING)
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation -e .
	@touch $@

$(VENV)/.%: $(VENV)/.base
	$(INSTALL) --no-build-isolation -e ".[$*]"
	@touch $@

# Another torch wants another setuptools than the one that is tested with ours.
.venv-torch-%/.test: $(PACKAGING)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet torch==$*
	grep -vE '^(torch|setuptools)==' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet -c $(@D)/constraints.txt torch==$* 'setuptools>=77'
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet -c $(@D)/constraints.txt torch==$* \
		--no-build-isolation -e ".[test]"
	@touch $@
