#!/bin/bash
# Runs Weir's programs and tests on another kernel, in QEMU: boots a Debian kernel package with an initramfs that is made
# of this machine's userland, and prints a line for each test. Needs qemu-system-x86, busybox-static, cpio, kmod, and
# what the tests need (iproute2, nftables, iptables, ipset, util-linux). No root, no network, no KVM; it ends by itself.
#
#   run.sh [--without MODULE]... [--timeout SECONDS] KERNEL.deb NAME=COMMAND...
#
#   apt-get download linux-image-6.1.0-50-cloud-amd64
#   run.sh linux-image-6.1*.deb agent="$PWD/target/debug/weir-agent --help"
#
# Commands run one after the other, in a shell, as root of the guest, with the files that they name (and the libraries of
# programs) at the same paths as here. --file PATH adds another file or folder. --without takes a kernel module
# out, to see what is said without it.
set -euo pipefail
export LC_ALL=C

die() { echo "run.sh: $*" >&2; exit 2; }

timeout=900 memory=2048 without=() files=() debs=()
while (($#)); do
    case $1 in
        --without) without+=("$2"); shift 2 ;;
        --timeout) timeout=$2; shift 2 ;;
        --file) files+=("$2"); shift 2 ;;
        *.deb) debs+=("$1"); shift ;;
        *) break ;;
    esac
done
((${#debs[@]} && $#)) || die "which kernel (a .deb), and which NAME=COMMAND? The head of this file has an example"
for tool in qemu-system-x86_64 cpio depmod ldd dpkg-deb; do
    command -v $tool >/dev/null || die "no $tool: apt-get install qemu-system-x86 cpio kmod busybox-static dpkg"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$work/kernel" "$root"/{bin,sbin,dev,proc,sys,tmp,run,etc,root,var/lib,usr/bin,usr/sbin,lib64}
for deb in "${debs[@]}"; do dpkg-deb -x "$deb" "$work/kernel"; done
kernel=$(find "$work/kernel" -name 'vmlinuz-*' | head -1)
[ -n "$kernel" ] || die "${debs[*]}: no kernel in there (newer ones come in two packages, linux-binary and linux-modules: name both)"
release=${kernel##*/vmlinuz-}

# Modules for networks, and none else.
modules=$(find "$work/kernel" -type d -path "*/lib/modules/$release" | head -1)
mkdir -p "$root/lib/modules/$release"
for part in kernel/net kernel/lib kernel/crypto kernel/arch kernel/drivers/net; do
    [ -d "$modules/$part" ] || continue
    mkdir -p "$root/lib/modules/$release/$part"
    cp -r "$modules/$part/." "$root/lib/modules/$release/$part"
done
rm -rf "$root/lib/modules/$release/kernel/drivers/net"/{ethernet,wireless,usb,can,phy,wan,hyperv}
find "$root/lib/modules" -name '*.ko.xz' -exec xz -d {} +
find "$root/lib/modules" -name '*.ko.zst' -exec zstd -q -d --rm {} +
cp "$modules"/modules.{builtin,order}* "$root/lib/modules/$release/" 2>/dev/null || true
for module in "${without[@]}"; do
    find "$root/lib/modules" -name "$module.ko" -delete
done
depmod -b "$root" "$release"

# Programs with their libraries, without what debuggers want.
add() {
    local path
    for path in "$@"; do
        [ -e "$root$path" ] && continue
        [ -e "$path" ] || die "$path is not here"
        if [ -d "$path" ]; then mkdir -p "$root$path"; cp -r "$path/." "$root$path"; continue; fi
        mkdir -p "$root$(dirname "$path")"
        if [ "$(head -c 4 "$path" | tail -c 3)" = ELF ]; then
            strip -o "$root$path" "$path" 2>/dev/null || cp "$path" "$root$path"
            chmod 755 "$root$path"
            # shellcheck disable=SC2046
            add $(ldd "$path" 2>/dev/null | grep -o '/[^ ]*')
        else
            cp "$path" "$root$path"
        fi
    done
}
busybox=$(command -v busybox) || die "no busybox: apt-get install busybox-static"
cp "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do
    [ "$applet" = busybox ] || ln -sf /bin/busybox "$root/bin/$applet"
done
for tool in ip bridge nft ipset setpriv bash nsenter unshare; do
    if path=$(readlink -f "$(command -v $tool)"); then add "$path"; ln -sf "$path" "$root/bin/$tool"; fi
done
for kind in nft legacy; do
    if path=$(readlink -f "$(command -v xtables-$kind-multi)"); then
        add "$path"
        for tool in iptables-$kind{,-save,-restore}; do ln -sf "$path" "$root/bin/$tool"; done
    fi
done
plugins=$(dirname "$(ldconfig -p | grep -om1 '/.*libc.so.6')")/xtables
[ -d "$plugins" ] || plugins=/usr/lib/x86_64-linux-gnu/xtables
if [ -d "$plugins" ]; then add "$plugins"; fi
mkdir -p "$root/etc/iproute2"; cp /etc/protocols /etc/services "$root/etc/" 2>/dev/null || true
ln -sf /bin/busybox "$root/sbin/modprobe"
for file in "${files[@]}"; do add "$(realpath -s "$file")"; done
for command in "$@"; do
    for word in ${command#*=}; do
        if [[ $word == /* && -e $word ]]; then add "$word"; fi
    done
done

{
    echo '#!/bin/sh'
    echo 'export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root RUST_BACKTRACE=0'
    echo 'mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev'
    echo 'mkdir -p /dev/shm; ip link set lo up; touch /run/xtables.lock'
    echo 'uname -r'
    # shellcheck disable=SC2016  # for the guest's shell
    for command in "$@"; do
        printf 'echo "BEGIN %s"; ( %s ) >/tmp/out 2>&1; code=$?; tail -n 60 /tmp/out; echo "RESULT %s $code"\n' \
            "${command%%=*}" "${command#*=}" "${command%%=*}"
    done
    echo 'echo END; sync; poweroff -f'
} >"$root/init"
chmod 755 "$root/init"
(cd "$root" && find . -print0 | cpio --null -o -H newc --quiet | gzip -1) >"$work/initrd"

accelerator=tcg
# KVM, where it works at all
if [ "${WEIR_KVM:-}" = 1 ]; then accelerator=kvm; fi
log=$work/log
timeout "$timeout" qemu-system-x86_64 -accel $accelerator -cpu max -smp 2 -m "$memory" -nographic -no-reboot -nic none \
    -kernel "$kernel" -initrd "$work/initrd" -append 'console=ttyS0 quiet panic=-1 rdinit=/init' </dev/null 2>&1 |
    stdbuf -oL tr -d '\r' | tee "$log" || true
grep -aq '^END' "$log" || die "the guest did not come to its end within $timeout s"
echo "== $release"
grep -a '^RESULT' "$log" | while read -r _ name code; do
    if [ "$code" = 0 ]; then echo "ok      $name"; else echo "code $code  $name"; fi
done
