# SPDX-License-Identifier: GPL-2.0
#
# The Binder buffer allocator as an overlay on the Linux kernel. `make help` says what there is; everything
# that a target needs, it gets.

LAB := tools/testing/binder/lab

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@echo 'Targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo 'Variables (make NAME=value):'
	@sed -n 's/^#: \([A-Z_]*\) \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

#: BINDER_LAB_DIR cache of source, tools and builds (default ~/.cache/binder-lab)
#: KERNEL_SRC kernel tree or tarball in place of Debian's; for apply and unapply, the tree to change
#: VM um (default) or qemu: which virtual machine
#: KERNEL variant to build (default um-debug), or kasan, lockdep, kcsan, kcfi, kmemleak; testing.rst explains
#: KERNELS those that test-full runs (default: lockdep kcsan um-debug kasan)
#: PARTS which parts of test to run, as 'kunit selftests*' (default: all but stress)
#: TOOLCHAIN host: build the kernel with this machine's own tools
#: JOBS how many compilers, or kernels of test-full, at once (default: one a processor)
#: TIMEOUT seconds that a command in the virtual machine may take (default: 900, or more where it takes more)
#: DURATION seconds of stress (default 120) and fuzz (default 300)
#: SEED number that makes stress, differential and fuzz do the same again
#: PROGRAMS how many random programs differential has (default 200)
#: MUTATIONS which mutations mutate tries, as '04- 20-' (default: all)
#: QUICK 1: for bench, fewer repetitions
#: OPTIONS 1: for bench, also with overflow checks, and with C helpers inlined into Rust
#: BENCH_ACCEL kvm or tcg: for bench, how two CPUs are run (default: kvm where a guest runs under it)
#: UPDATE 1: bench-check writes tools/testing/binder/bench/baseline.json
#: DEBIAN_MIRROR where Debian's packages come from (default http://deb.debian.org/debian)

.PHONY: demo
demo: ## Binder traffic through the allocator, and idle pages given back; report/index.html
	@$(LAB)/demo

.PHONY: test
test: ## all tests; the last line counts them
	@$(LAB)/test

.PHONY: test-full
test-full: ## all tests, on each of the kernels that find what others don't
	@$(LAB)/test-full

.PHONY: coverage
coverage: ## which lines of ours the tests execute, and which they don't
	@$(LAB)/coverage

.PHONY: host-test
host-test: ## the allocator's tests on this machine: models, exhaustive cases, loom
	@$(LAB)/host-test

.PHONY: stress
stress: ## everything at once, on two CPUs, for DURATION seconds; then nothing may be left
	@$(LAB)/stress

.PHONY: mutate
mutate: ## bring bugs that others had into the driver, and see that a test finds each
	@tools/testing/binder/mutate.sh $(MUTATIONS)

.PHONY: differential
differential: ## the same random operations with three drivers, and their answers compared
	@$(LAB)/differential

.PHONY: fuzz
fuzz: ## random operations for DURATION seconds; the kernel mustn't complain
	@$(LAB)/fuzz

.PHONY: bench
bench: ## costs next to those of the C driver and of upstream's Rust driver; report/bench/index.html
	@$(LAB)/bench

.PHONY: bench-check
bench-check: ## fail if what can be counted exactly costs over 3 % more than it did, next to the better peer
	@$(LAB)/bench check

.PHONY: bench-compare
bench-compare: ## fail if the last two runs of bench differ by 1 % in what is to be the same
	@$(LAB)/bench compare

.PHONY: bench-publish
bench-publish: ## put what bench measured last into README.md and the documentation
	@$(LAB)/bench publish

.PHONY: shell
shell: ## a shell in the virtual machine, with the Binder devices mounted
	@$(LAB)/shell

.PHONY: check
check: ## rustfmt, clippy, W=1, rustdoc and checkpatch on our files
	@$(LAB)/check

.PHONY: build
build: ## build the kernel and the programs of the virtual machine, and no more
	@$(LAB)/build

.PHONY: apply
apply: ## put overlay and patches on the tree KERNEL_SRC
	@$(LAB)/apply apply "$(KERNEL_SRC)"

.PHONY: unapply
unapply: ## take them off again
	@$(LAB)/apply unapply "$(KERNEL_SRC)"

.PHONY: clean
clean: ## remove this checkout's builds from the cache
	@$(LAB)/clean work

.PHONY: distclean
distclean: ## remove the whole cache
	@$(LAB)/clean all
