# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# What every script of the lab starts with: where things are, and how to talk to whoever is watching.
#
# A script that makes something prints the path of what it made on standard output, and
# all that people read on standard error. Nothing that is there already is made again.

set -euo pipefail

LAB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
TOP=$(cd "$LAB/../../../.." && pwd -P)
BINDER=$TOP/tools/testing/binder
: "${BINDER_LAB_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/binder-lab}"
: "${JOBS:=$(nproc)}"
: "${LAB_START:=$(date +%s)}"
export BINDER_LAB_DIR JOBS LAB_START

# Reports an error, with what to do about it, and ends the script.
die() {
	printf 'lab: %s\n' "$@" >&2
	exit 1
}

for switch in QUICK OPTIONS UPDATE; do
	case ${!switch:-} in
	'' | 1) ;;
	0) unset "$switch" ;;
	*) die "$switch=${!switch}: say $switch=1, or leave it out" ;;
	esac
done
case $TOP in
*[[:space:]]*) die "$TOP: the kernel's build can't handle blanks in paths; move this checkout" ;;
esac
case $BINDER_LAB_DIR in
*[[:space:]]*) die "BINDER_LAB_DIR='$BINDER_LAB_DIR': the kernel's build can't handle blanks in paths; choose another" ;;
/*) ;;
*) BINDER_LAB_DIR=$PWD/$BINDER_LAB_DIR ;;
esac
mkdir -p "$BINDER_LAB_DIR" || die "can't make $BINDER_LAB_DIR; set BINDER_LAB_DIR to a folder you may write to"
BINDER_LAB_DIR=$(cd "$BINDER_LAB_DIR" && pwd -P)

# The builds of this checkout. Two checkouts share the cache but not their work trees.
WORK=$BINDER_LAB_DIR/work/$(basename "$TOP" | tr -c 'A-Za-z0-9\n' _)-$(printf %s "$TOP" | sha256sum | cut -c 1-8)
LOGS=$WORK/logs
mkdir -p "$LOGS"

elapsed() {
	local seconds=$(($(date +%s) - LAB_START))
	printf '[%3d:%02d]' $((seconds / 60)) $((seconds % 60))
}

# Says which step begins.
step() {
	printf '%s %s\n' "$(elapsed)" "$*" >&2
}

# Shows every second on a terminal, and every 30 seconds elsewhere, how far a log has come.
#   ticker TITLE LOG TOTAL     (TOTAL: lines expected, or 0 when nobody knows)
ticker() {
	local title=$1 log=$2 total=$3 interval=30 lines of='' sleeper
	trap 'kill "$sleeper"; exit' TERM
	if [ -t 2 ]; then interval=1; fi
	if [ "$total" != 0 ]; then of=" of about $total"; fi
	while sleep "$interval" & sleeper=$!; wait "$sleeper" && kill -0 $$ 2>/dev/null; do
		lines=$(wc -l <"$log")
		if [ -t 2 ]; then
			printf '\r\033[K%.100s' "$(elapsed) $title: $lines$of: $(tail -n 1 "$log" | tr -dc '[:print:]')" >&2
		else
			printf '%s %s: %s%s\n' "$(elapsed)" "$title" "$lines" "$of" >&2
		fi
	done
}

# Runs a step with its output in a log, which is shown when the step fails.
#   logged NAME TITLE TOTAL COMMAND...
logged() {
	local log=$LOGS/$1.log title=$2 total=$3 status=0 watcher
	shift 3
	step "$title"
	: >"$log"
	ticker "$title" "$log" "$total" &
	watcher=$!
	"$@" >"$log" 2>&1 </dev/null || status=$?
	kill "$watcher" 2>/dev/null
	wait "$watcher" 2>/dev/null || true
	if [ -t 2 ]; then printf '\r\033[K' >&2; fi
	if [ "$status" != 0 ]; then
		tail -n 25 "$log" >&2
		die "'$title' failed (exit status $status); the whole log: $log"
	fi
}

# Holds a lock until the script ends, waiting for another run that has it.
#   lock FILE
lock() {
	exec {LOCK_FD}<>"$1"
	if ! flock -n "$LOCK_FD"; then
		step "waiting for another run (pid $(cat "$1"))"
		flock "$LOCK_FD"
	fi
	echo $$ >"$1"
}

unlock() {
	exec {LOCK_FD}>&-
}

# Short name for some content: the same for the same words.
digest() {
	sha256sum | cut -c 1-8
}

# Runs a command with the tools that build the kernel.
with_toolchain() {
	if [ "${TOOLCHAIN:-}" = host ]; then
		"$@"
	else
		"$LAB/enter" "$("$LAB/rootfs" toolchain)" "$@"
	fi
}

# Makes the folder of a run, prints its path, and drops those of the days before.
new_run() {
	mkdir -p "$WORK/runs"
	find "$WORK/runs" -mindepth 1 -maxdepth 1 -mtime +1 -exec rm -rf {} +
	mktemp -d "$WORK/runs/$(date +%Y%m%d-%H%M%S)-XXXX"
}

# Boots a kernel for one command, and shows what that prints as it comes:   shown KERNEL RUN COMMAND [KERNEL-PARAMETER...]
shown() {
	local kernel=$1 run=$2 command=$3 watcher status=0
	shift 3
	: >"$run/output"
	tail --follow --pid=$$ --sleep-interval=0.2 "$run/output" &
	watcher=$!
	"$LAB/boot" "$kernel" "$run" "($command) >/host/output 2>&1" "$@" || status=$?
	sleep 0.5
	kill "$watcher" 2>/dev/null || true
	return "$status"
}

# What the virtual machine runs for the stress.
stress_command() {
	echo "binder-selftests --stress --seed=${SEED:-$SRANDOM} --seconds=${DURATION:-120}"
}

# The kernel to run: KERNEL names a variant, VM=qemu makes it an x86_64 one.
if [ -z "${KERNEL:-}" ]; then
	case ${VM:-um} in
	um) KERNEL=um-debug ;;
	qemu) KERNEL=x86_64-debug-lockdep ;;
	*) die "VM=$VM: the lab knows um and qemu" ;;
	esac
fi
# Short names. Of data races, indirect calls and leaks, one kernel takes care.
case $KERNEL in
kasan) KERNEL=um-debug-kasan ;;
lockdep) KERNEL=x86_64-debug-lockdep ;;
kcsan | kcfi | kmemleak) KERNEL=x86_64-debug-kcsan-kcfi-kmemleak ;;
esac
