#!/usr/bin/env bash
# Runs in the machine that `run.sh` starts: the test binaries, then a platform from start to nothing left. /work is the disk that came in.
# An emulated processor is slow: what bounds times does so with ARCO_TEST_SLOWNESS.
set -uo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root NO_COLOR=1 ARCO_TEST_SLOWNESS=8
failed=0
root=/sys/fs/cgroup

say() { echo "== $* ($SECONDS s)"; }
bad() { echo "FAILED: $*"; failed=1; }
check() { # what, command …
  local what=$1
  shift
  if "$@" >/tmp/check.log 2>&1; then echo "ok: $what"; else bad "$what: $*: $(tail -5 /tmp/check.log)"; fi
}
equal() { # what, wanted, found
  if [ "$2" = "$3" ]; then echo "ok: $1 is $3"; else bad "$1 is \`$3\`, not \`$2\`"; fi
}

say "kernel $(uname -r), $(stat -fc %T $root), controllers $(cat $root/cgroup.controllers), $(cat /proc/self/cgroup)"
equal "the file system of cgroups" cgroup2fs "$(stat -fc %T $root)"
modprobe -a overlay loop bridge veth nf_tables 2>/dev/null

for it in /work/tests/*; do
  say "$(basename "$it")"
  timeout 900 "$it" --test-threads=2
  status=$?
  [ $status = 0 ] || bad "$(basename "$it") ended with $status"
done
[ -z "$(find $root -maxdepth 1 -type d -name 'arco-*')" ] || bad "the tests left $(find $root -type d -path '*arco-*')"

say "a platform"
data=/var/lib/arco
mkdir -p /var/cache/arco
cp -r /work/cache/stacks /var/cache/arco/
arco() { /work/arco --context "$data/admin.toml" "$@"; }
/work/arco server --data-dir "$data" --http-listen 127.0.0.1:8080 --https-listen 127.0.0.1:8444 >/tmp/server.log 2>&1 &
server=$!
for _ in $(seq 1500); do curl -fsS -o /dev/null http://127.0.0.1:7070/healthz 2>/dev/null && break; sleep 0.2; done
check "the server is ready" curl -fsS http://127.0.0.1:7070/healthz
group_of() { find $root -mindepth 2 -maxdepth 2 -type d -path "$root/arco-*/$1"; }

check "a static example is deployed" arco deploy /work/static-site --app demo --component site --memory-mb 96 --cpu-milli 500 --timeout 300
tail -3 /tmp/check.log
check "it answers" curl -fsS -H 'Host: site-demo.localhost' http://127.0.0.1:8080/
id=$(arco status demo/site -o json | tr ',{}[]' '\n' | sed -n 's/^ *"id": *"\([^"]*\)".*/\1/p' | head -1)
group=$(group_of "$id")
[ -n "$id" ] && [ -d "$group" ] || bad "no cgroup below $root/arco-* is named for instance \`$id\`"
limits() {
  equal "memory.max $1" $((96 << 20)) "$(cat "$group/memory.max")"
  equal "memory.swap.max $1" 0 "$(cat "$group/memory.swap.max")"
  equal "cpu.max $1" "50000 100000" "$(cat "$group/cpu.max")"
  equal "pids.max $1 is a number" 1 "$(grep -cE '^[0-9]+$' "$group/pids.max")"
}
limits "at the start"
[ "$(cat "$group/cgroup.procs" | wc -l)" -ge 2 ] || bad "the cgroup holds no program"
# systemd owns the root group: it must not take our controllers away, whatever it does with its own units.
printf '[Service]\nType=oneshot\nExecStart=/bin/true\nMemoryMax=64M\nCPUQuota=10%%\nTasksMax=10\nIOWeight=50\n' >/run/systemd/system/other.service
check "systemd runs a unit with limits" sh -c "systemctl daemon-reload && systemctl start other && rm /run/systemd/system/other.service && systemctl daemon-reload"
limits "after systemd went over its groups"
equal "limits seen inside" "$((96 << 20))" "$(arco exec demo/site -- cat /sys/fs/cgroup/memory.max 2>&1 | tr -d '\r')"
equal "a program run inside is in the same cgroup" 0::/ "$(arco exec demo/site -- cat /proc/self/cgroup 2>&1 | tr -d '\r')"
check "the group is read-only inside" sh -c "! /work/arco --context $data/admin.toml exec demo/site -- sh -c 'echo 1 > /sys/fs/cgroup/memory.max'"

mkdir -p /tmp/hungry
cat >/tmp/hungry/Dockerfile <<'DOCKERFILE'
FROM debian:12
CMD ["sh", "-c", "cat /dev/zero | tail -c 300000000"]
DOCKERFILE
arco deploy /tmp/hungry --app hungry --component eater --memory-mb 32 --timeout 120 >/tmp/hungry.log 2>&1 && echo "note: the hungry one was called healthy first"
for _ in $(seq 360); do
  arco status hungry/eater >/tmp/status.log 2>&1
  grep -qi 'out of memory' /tmp/status.log && break
  sleep 0.5
done
check "an application without memory is named" grep -i 'out of memory' /tmp/status.log
tail -n 3 /tmp/status.log

for application in demo hungry; do check "$application is deleted" arco delete $application --yes; done
for _ in $(seq 900); do [ -z "$(find $root -mindepth 2 -maxdepth 2 -type d -path "$root/arco-*")" ] && break; sleep 0.2; done
equal "cgroups of instances after the delete" "" "$(find $root -mindepth 2 -maxdepth 2 -type d -path "$root/arco-*")"
kill -TERM $server
wait $server
equal "exit status of the server" 0 $?
equal "cgroups left" "" "$(find $root -name 'arco-??????' -type d)"
equal "processes left" "" "$(pgrep -fa '/work/arco' || true)"
equal "mounts left" "" "$(grep " $data" /proc/mounts || true)"
equal "links left" "" "$(ip -o link | grep -o 'arco-[0-9a-f]*' | sort -u)"
equal "tables left" "" "$(nft list tables | grep arco || true)"
if [ $failed = 0 ]; then echo "platform: passed"; else echo "platform: failed"; tail -n 30 -v /tmp/server.log /tmp/hungry.log; fi
exit $failed
