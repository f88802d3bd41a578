#!/usr/bin/env bash
# The container tests on pure cgroup v2: a Debian 12 machine in qemu (no KVM needed) with systemd and Debian's own kernel runs the
# test binaries of arco-orchestrator and a whole platform (`inside.sh`). Called by `make test-vm`.
#
# What goes in lies on a second disk, what comes out comes over a serial line: the machine needs no network, no ssh and no open port.
# Kept: the machine's root disk in /var/cache/arco/test-vm, made again when `root_recipe` changes. Everything else is removed, also after
# a failure or a signal.
set -euo pipefail
cd "$(dirname "$0")/../.."
limit_s=${ARCO_VM_LIMIT_S:-1200}
mirror=${ARCO_VM_MIRROR:-http://deb.debian.org/debian}
kept=${ARCO_VM_CACHE:-/var/cache/arco/test-vm}
stacks=${ARCO_VM_STACKS:-/var/cache/arco/stacks}
say() { printf '== %s (%s s)\n' "$*" "$SECONDS"; }
give_up() { echo "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || give_up "the machine's disks are made by root: sudo make test-vm"
[ "$(uname -m)" = x86_64 ] || give_up "test-vm starts an x86_64 machine and needs an x86_64 host"
for program in qemu-system-x86_64 debootstrap mke2fs python3; do
  command -v $program >/dev/null || give_up "$program is missing: run \`make test-vm\`, which installs deploy/packages-vm.txt"
done

work=$(mktemp -d /var/tmp/arco-vm-XXXXXX)
machine= server=
clean() {
  trap - EXIT
  for pid in $machine $server; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in $machine $server; do
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
  done
  rm -rf --one-file-system "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# What the platform needs to run, a kernel, systemd, and what the tests call.
root_recipe() {
  cat <<'RECIPE'
edition 2
suite bookworm
packages ca-certificates,conntrack,curl,debootstrap,e2fsprogs,git,iproute2,libseccomp2,nftables,busybox-static,iputils-ping,procps,kmod,udev,systemd-sysv,initramfs-tools,linux-image-cloud-amd64
RECIPE
}

make_root() {
  local root=$work/root packages
  packages=$(root_recipe | sed -n 's/^packages //p')
  say "making the machine's root disk from $mirror (once per machine)"
  debootstrap --variant=minbase --include="$packages" bookworm "$root" "$mirror" >"$work/debootstrap.log" 2>&1 \
    || { tail -20 "$work/debootstrap.log" >&2; give_up "debootstrap failed"; }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  mkdir -p "$root/work"
  echo arco-vm >"$root/etc/hostname"
  printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n' >"$root/etc/systemd/network/eth0.network"
  cat >"$root/etc/systemd/system/arco-test.service" <<'UNIT'
[Unit]
Description=The container tests
After=local-fs.target systemd-networkd.service
[Service]
Type=oneshot
StandardInput=null
ExecStart=/bin/sh -c 'stty -F /dev/ttyS1 raw -echo; mount /dev/vdb /work; bash /work/inside.sh >/dev/ttyS1 2>&1; echo "arco-vm-status $?" >/dev/ttyS1'
ExecStopPost=/bin/systemctl --no-block poweroff
UNIT
  chroot "$root" systemctl enable arco-test.service systemd-networkd.service >/dev/null 2>&1 || true
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
  ln -sf ../arco-test.service "$root/etc/systemd/system/multi-user.target.wants/arco-test.service"
  mkdir -p "$kept"
  cp "$root"/boot/vmlinuz-* "$kept/vmlinuz"
  cp "$root"/boot/initrd.img-* "$kept/initrd"
  rm -f "$kept/root.img" "$kept/recipe"
  mke2fs -q -F -t ext4 -d "$root" "$kept/root.img" 16G >/dev/null
  root_recipe >"$kept/recipe"
  rm -rf --one-file-system "$root"
}

# The executables that cargo made of a folder's sources: those of its tests (1), or the program itself (0).
executables() {
  python3 -c 'import json,sys
for line in open(sys.argv[1]):
    it = json.loads(line)
    if it.get("reason") == "compiler-artifact" and it.get("executable") and sys.argv[2] in it["target"]["src_path"] and it["profile"]["test"] == (sys.argv[3] == "1"):
        print(it["executable"])' "$work/built.json" "$1" "$2"
}

# The stacks that the static example and `FROM debian:12` need: the machine has no network to make them. A deploy on this host makes those
# that are missing, of the edition that this executable wants.
make_stacks() {
  say "making sure of the stacks on this host"
  local data=$work/host
  # shellcheck disable=SC2046
  "$arco" server --data-dir "$data" $(for it in http https console api registry; do echo "--$it-listen 127.0.0.1:0"; done) \
    --stop-instances >"$work/host.log" 2>&1 &
  server=$!
  for _ in $(seq 3000); do [ -f "$data/server.json" ] && break; sleep 0.1; done
  "$arco" --context "$data/admin.toml" deploy examples/static-site --app warm --component site >"$work/deploy.log" 2>&1 \
    || { tail -20 "$work/host.log" "$work/deploy.log" >&2; give_up "the host could not make the stacks"; }
  "$arco" --context "$data/admin.toml" delete warm --yes >/dev/null
  kill -TERM "$server"; wait "$server" || true
  server=
}

# The newest edition of a stack that is kept.
newest() {
  basename "$(printf '%s\n' "$stacks/$1"-[0-9]*.json | sort -V | tail -1)" .json
}

say "building"
# As `make test` does, so that nothing is compiled twice.
export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings
cargo build --locked --workspace --all-targets --message-format=json >"$work/built.json"
arco=$(executables /crates/arco/src/ 0)
tests=$(executables /crates/orchestrator/ 1)
[ -x "$arco" ] && [ -n "$tests" ] || give_up "cargo named no executables"

exec 9>"/run/lock/arco-test-vm"
flock 9
[ -f "$kept/root.img" ] && [ "$(cat "$kept/recipe" 2>/dev/null)" = "$(root_recipe)" ] || make_root
make_stacks

say "making the disk that goes in"
in=$work/in
mkdir -p "$in/tests" "$in/cache/stacks/blobs"
cp tests/vm/inside.sh "$in/inside.sh"
cp -r examples/static-site "$in/static-site"
strip --strip-debug -o "$in/arco" "$arco"
for it in $tests; do strip --strip-debug -o "$in/tests/$(basename "$it")" "$it"; done
for stack in "$(newest base)" "$(newest web)"; do
  cp "$stacks/$stack.json" "$in/cache/stacks/"
  for digest in $(grep -o '"blob":{[^}]*"digest":"sha256:[0-9a-f]*"' "$stacks/$stack.json" | grep -o '[0-9a-f]\{64\}'); do
    cp "$stacks/blobs/$digest" "$in/cache/stacks/blobs/"
  done
done
mke2fs -q -F -t ext4 -d "$in" "$work/in.img" 2G >/dev/null
rm -rf "$in"

say "starting the machine"
# `snapshot=on` keeps what the machine writes in an unnamed file below TMPDIR. `restrict=on`: nothing outside is reached.
TMPDIR=$work timeout --kill-after=10 "$limit_s" qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -smp 2 -m 3072 \
  -nodefaults -display none -no-reboot -kernel "$kept/vmlinuz" -initrd "$kept/initrd" \
  -append "root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1 systemd.unified_cgroup_hierarchy=1 quiet" \
  -drive "file=$kept/root.img,if=virtio,format=raw,snapshot=on" -drive "file=$work/in.img,if=virtio,format=raw,snapshot=on" \
  -nic user,restrict=on,model=virtio-net-pci -device virtio-rng-pci \
  -serial "file:$work/console.log" -serial "file:$work/out.log" </dev/null 9>&- &
machine=$!
: >>"$work/out.log"
tail -n +1 --pid="$machine" -f "$work/out.log" 2>/dev/null &
tailer=$!
# In the background and waited for, so that a signal is heard at once.
wait "$machine" && ended=0 || ended=$?
machine=
wait "$tailer" || true

status=$(sed -n 's/^arco-vm-status \([0-9]*\).*/\1/p' "$work/out.log" | tail -1)
if [ -z "$status" ]; then
  echo "the machine said no result (qemu ended with $ended; 124 means after $limit_s s); its console ended so:" >&2
  tail -30 "$work/console.log" >&2
  exit 1
fi
say "closing lines"
grep -E '^(test result:|platform: )' "$work/out.log" || true
[ "$status" = 0 ] && say "passed on pure cgroup v2" || say "failed with status $status"
exit "$status"
