#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Takes out of the driver, one by one, what protects it from bugs that others had, and expects that the test which
# is there for each bug fails:   mutate.sh [NAME...]
#
# Each file in mutations/ is a patch, with a head that says
#
#   Bug:     what happened, and to whom
#   Test:    the test that must fail: host SUITE NAME, kunit SUITE.NAME, selftest NAME; or build: it isn't compiled
#   Kernel:  the kernel that it takes, if not KERNEL (default um-debug)
#   Expect:  what the compiler must say; or the kernel's log, where the test may not come to report its failure
#
# A NAME chooses those whose file names contain it. All patches go on the lab's work tree, which is as it was in the
# end; the checkout isn't touched. Prints a line for each mutation: killed, or SURVIVED, or why neither can be said.

LAB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)/lab
. "$LAB/lib.sh"

lock "$WORK/.lock"
tree=$("$LAB/tree")
"$LAB/userland" >/dev/null
userland=$("$LAB/rootfs" userland)
run=$(new_run)
restore() {
	"$LAB/tree" >/dev/null
}
trap restore EXIT

chosen=("$@")
if [ $# = 0 ]; then chosen=(''); fi
mapfile -t files < <(for name in "${chosen[@]}"; do
	find "$BINDER/mutations" -name "*$name*.patch"
done | sort -u)
[ ${#files[@]} != 0 ] || die "there is no such mutation"

# The value of a field in the head of a mutation:   field NAME FILE [DEFAULT]
field() {
	local value
	value=$(sed -n "/^--- /q; s/^$1: *//p" "$2")
	echo "${value:-${3:-}}"
}

# Whether a test ran, and how it went, by its own report in LOG:   verdict KIND NAME LOG   prints pass, fail or nothing
verdict() {
	local line
	case $1 in
	host) line=$(grep -E "^test $2 \.\.\. (ok|FAILED)" "$3" | tail -n 1) ;;
	kunit) line=$(grep -oE "(not )?ok [0-9]+ ${2#*.}$" "$3" | tail -n 1) ;;
	selftest) line=$(grep -oE "(not )?ok [0-9]+ - $2( # SKIP.*)?$" "$3" | tail -n 1) ;;
	esac
	case $line in
	*SKIP*) ;;
	*FAILED | 'not ok'*) echo fail ;;
	?*) echo pass ;;
	esac
}

# Builds the work tree as it is for a kind of test; what it says goes to LOG:   build KIND KERNEL LOG
build() {
	case $1 in
	host) ;; # Cargo builds when it runs the tests.
	kunit | selftest | build)
		"$LAB/kernel" "$2" >"$3" 2>&1 || {
			cat "$LOGS/kernel-$2.log" >>"$3"
			return 1
		}
		;;
	*) die "there is no kind of test '$1'" ;;
	esac
}

# Runs tests of one kind:   run_tests KIND KERNEL LOG NAME...
run_tests() {
	local kind=$1 kernel=$2 log=$3 boot=$run/$2/boot built=$WORK/build/$2 image
	shift 3
	case $kind in
	host)
		"$LAB/enter" "$userland" env -C "$tree/tools/testing/binder/host" "CARGO_HOME=$BINDER_LAB_DIR/cargo" \
			CARGO_TERM_COLOR=never timeout "${TIMEOUT:-600}" cargo test --locked --no-fail-fast \
			--target-dir "$WORK/host" "--test=${1%% *}" -- --exact "${1#* }" >"$log" 2>&1
		return
		;;
	esac
	mkdir -p "$run/$kernel"
	[ -e "$run/$kernel/initramfs" ] || "$LAB/initramfs" "$built" "$run/$kernel/initramfs"
	for image in linux arch/x86/boot/bzImage; do
		if [ -e "$built/$image" ]; then cp "$built/$image" "$run/$kernel/linux"; fi
	done
	rm -rf "$boot"
	local command=true parameters=("kunit.enable=1" "kunit.timeout=20" "kunit.filter_glob=${1:-}")
	if [ "$kind" = selftest ]; then
		command="binder-selftests $*" parameters=()
	fi
	TIMEOUT=${TIMEOUT:-180} "$LAB/boot" "$run/$kernel" "$boot" "$command" "${parameters[@]}" >"$log" 2>&1 || true
	tr -d '\r' <"$boot/console.log" >>"$log"
}

# What is to be said of one mutation:   try FILE LOG   (the work tree has it)
try() {
	local file=$1 log=$2 kind name kernel expect
	read -r kind name < <(field Test "$file")
	kernel=$(field Kernel "$file" "$KERNEL") expect=$(field Expect "$file")
	if ! build "$kind" "$kernel" "$log"; then
		if [ "$kind" = build ] && grep -qE "$expect" "$log"; then
			echo killed
		else
			echo "isn't compiled, which was not expected"
		fi
		return
	fi
	if [ "$kind" = build ]; then
		echo SURVIVED
		return
	fi
	run_tests "$kind" "$kernel" "$log" "$name" || true
	case $(verdict "$kind" "${name#* }" "$log") in
	pass) echo SURVIVED ;;
	fail) echo killed ;;
	*) if [ -n "$expect" ] && grep -qE "$expect" "$log"; then echo killed; else echo "the test didn't run"; fi ;;
	esac
}

# Each test must pass when nothing is taken out. Selftests share a boot, the others are run one by one.
failed=()
expect_pass() {
	local kind=$1 kernel=$2 name log=$run/unmutated.log
	shift 2
	step "the driver as it is: $kind $*"
	run_tests "$kind" "$kernel" "$log" "$@" || true
	for name in "$@"; do
		[ "$(verdict "$kind" "${name#* }" "$log")" = pass ] || failed+=("$name")
	done
	cat "$log" >>"$run/unmutated"
}
while read -r kind kernel; do
	[ "$kind" != build ] || continue
	build "$kind" "$kernel" "$run/unmutated.log" || die "the kernel $kernel can't be built; the log: $run/unmutated.log"
	mapfile -t names < <(for file in "${files[@]}"; do
		if [ "$(field Test "$file" | cut -d ' ' -f 1) $(field Kernel "$file" "$KERNEL")" = "$kind $kernel" ]; then
			field Test "$file" | cut -d ' ' -f 2-
		fi
	done | sort -u)
	if [ "$kind" = selftest ]; then
		expect_pass "$kind" "$kernel" "${names[@]}"
	else
		for name in "${names[@]}"; do expect_pass "$kind" "$kernel" "$name"; done
	fi
done < <(for file in "${files[@]}"; do
	echo "$(field Test "$file" | cut -d ' ' -f 1) $(field Kernel "$file" "$KERNEL")"
done | sort -u)
[ ${#failed[@]} = 0 ] || die "these tests don't pass before anything is taken out: ${failed[*]}" "all of it: $run/unmutated"

killed=0 nth=0
for file in "${files[@]}"; do
	name=$(basename "$file" .patch)
	log=$run/$name.log
	nth=$((nth + 1))
	step "$nth of ${#files[@]}: $name"
	if with_toolchain patch --strip 1 --batch --forward --no-backup-if-mismatch --reject-file - \
		--directory "$tree" --input "$file" >"$log" 2>&1; then
		result=$(try "$file" "$log")
	else
		result="doesn't apply"
	fi
	restore
	if [ "$result" = killed ]; then killed=$((killed + 1)); fi
	echo "$name: $result ($(field Test "$file"))"
done
step "logs: $run"
echo "$killed of ${#files[@]} killed"
[ "$killed" = ${#files[@]} ]
