#!/bin/sh
# Collects what hvlab needs to rebuild this Linux machine, into one archive:  sudo sh collect.sh [-o FILE.tar.gz] [--root DIR]
#
# Only what is named here is taken: of the kernel's log the matching words of the lines below, six ACPI tables, numbers of PCI functions.
# No serial numbers, host names, MAC addresses, command lines or user names.  Nothing is sent anywhere; look into the archive before you do.
# --root reads a copy of /sys under DIR and the log from DIR/dmesg.

set -u
umask 077
export LC_ALL=C
file=hvlab-machine.tar.gz root=
while [ $# -gt 0 ]; do
    case $1 in
        -o) [ $# -gt 1 ] || { echo "collect: -o wants a file" >&2; exit 2; }; file=$2; shift 2 ;;
        --root) [ $# -gt 1 ] || { echo "collect: --root wants a folder" >&2; exit 2; }; root=$2; shift 2 ;;
        *) echo "usage: collect.sh [-o FILE.tar.gz] [--root DIR]" >&2; exit 2 ;;
    esac
done
case $file in *.tar.gz | *.tgz) ;; *) echo "collect: $file: the archive's name must end in .tar.gz" >&2; exit 2 ;; esac
: > "$file" || exit 2
temporary=$(mktemp -d) || exit 2
trap 'rm -rf "$temporary"' EXIT
out=$temporary/hvlab-machine
mkdir "$out"

say() { echo "$*" | tee -a "$out/collected.txt"; }

kernel_log() {
    if [ -n "$root" ]; then
        cat "$root/dmesg"
    elif dmesg | grep -q BIOS-e820; then
        dmesg
    else
        journalctl -k -b -q --no-hostname --no-pager || dmesg
    fi 2> /dev/null
}

# Of each line only the words that match are kept: no prefix, no rest.
allowed_words() {
    sed -n '
s/.*\(Linux version [0-9][0-9.]*\).*/\1/p
s/.*\(BIOS-e820: [][A-Za-z0-9 ()-]*\).*/\1/p
s/.*\(Host address width [0-9]*\).*/DMAR: \1/p
s/.*\(DRHD base: 0x[0-9a-f]* flags: 0x[0-9a-f]*\).*/DMAR: \1/p
s/.*\(reg_base_addr [0-9a-f]* ver [0-9]*:[0-9]* cap [0-9a-f]* ecap [0-9a-f]*\).*/DMAR: \1/p
s/.*\(IOMMU [0-9a-f]*: ver [0-9]*:[0-9]* cap [0-9a-f]* ecap [0-9a-f]*\).*/DMAR: \1/p
s/.*\(RMRR base: 0x[0-9a-f]* end: 0x[0-9a-f]*\).*/DMAR: \1/p
s/.*\(ATSR flags: 0x[0-9a-f]*\).*/DMAR: \1/p
s/.*\(RHSA base: 0x[0-9a-f]* proximity domain: 0x[0-9a-f]*\).*/DMAR: \1/p
s/.*\(ANDD device: [0-9a-f]* name: [A-Za-z0-9_.\\^]*\).*/DMAR: \1/p
s/.*\(IOAPIC id [0-9]* under DRHD base *0x[0-9a-f]*\).*/DMAR-IR: \1/p
s/.*\(HPET id [0-9]* under DRHD base *0x[0-9a-f]*\).*/DMAR-IR: \1/p
s/.*ACPI device .*\( under DMAR at [0-9a-f]* as [0-9a-f:.]*\).*/DMAR: ACPI device x\1/p
s/.*\(etting identity map for device [0-9a-f:.]* \[[0-9a-fxmem -]*\]\).*/DMAR: S\1/p
s/.*\(x2apic is disabled because BIOS sets x2apic opt out\).*/DMAR-IR: \1/p
s/.*\(ACPI: [A-Z][A-Z0-9]* [0-9A-Fa-fx]* [0-9A-Fa-f]* (v[0-9]*\).*/\1/p
s/.*\(MMCONFIG for domain [0-9a-f]* \[bus [0-9a-f-]*\] at \[mem 0x[0-9a-f]*-0x[0-9a-f]*\]\).*/PCI: \1/p
s/.*\(ECAM \[mem 0x[0-9a-f]*-0x[0-9a-f]*\] (base 0x[0-9a-f]*) for domain [0-9a-f]* \[bus [0-9a-f-]*\]\).*/PCI: \1/p
s/.*\(nvme[0-9]*: pci function [0-9a-f:.]*\).*/nvme \1/p
s/.*\(pci_bus [0-9a-f]*:[0-9a-f]*: root bus resource\).*/\1/p
s/.*\(pci [0-9a-f:.]*: \[[0-9a-f:]*\] type [A-Za-z0-9 \/-]*\).*/\1/p
s/.*\(pci [0-9a-f:.]*: found \[[0-9a-f:]*\] class [a-z0-9 ]*\).*/\1/p
s/.*\(pci [0-9a-f:.]*: reg [0-9a-fx]*: [][A-Za-z0-9: -]*\).*/\1/p
s/.*\(pci [0-9a-f:.]*: BAR [0-5]:* \[[A-Za-z0-9 -]*\]\).*/\1/p
s/.*\(pci [0-9a-f:.]*: PCI bridge to \[bus [0-9a-f-]*\][a-z ()]*\).*/\1/p
s/.*\(IRQ remapping was enabled on [a-z0-9]* but we are not in kdump mode\).*/DMAR-IR: \1/p
s/.*\(SRAT: Node [0-9]*\).*/\1/p
s/.*\(SRAT: PXM [0-9]*\).*/\1/p
s/.*\(AMD-Vi: [A-Za-z0-9 ]*\).*/\1/p
'
}

# The memory map as firmware gave it to the kernel, in the words of `grep -r . /sys/firmware/memmap`.
memory_map() {
    for entry in "$root"/sys/firmware/memmap/*; do
        for name in start end type; do
            [ -r "$entry/$name" ] && echo "memmap/${entry##*/}/$name:$(cat "$entry/$name")"
        done
    done
}

# The functions in the words of `lspci -nn -vv`, from the numbers in /sys; of configuration space only header and PCI Express capability.
pci_functions() {
    for device in "$root"/sys/bus/pci/devices/*; do
        [ -r "$device/config" ] && pci_function "$device"
    done
}

pci_function() {
    device=$1
    read -r class < "$device/class" && read -r vendor < "$device/vendor" && read -r id < "$device/device" || return
    read -r subvendor < "$device/subsystem_vendor" && read -r subdevice < "$device/subsystem_device" || subvendor=0x0000 subdevice=0x0000
    kind=${class#0x} interface=${class#0x????}
    # shellcheck disable=SC2046
    set -- $(od -An -v -tu1 -N 256 "$device/config")
    [ $# -ge 64 ] || return
    printf '%s Device [%s]: Device [%s:%s] (rev %02x) (prog-if %s)\n' "${device##*/}" "${kind%??}" "${vendor#0x}" "${id#0x}" "$9" "$interface"
    printf '\tSubsystem: Device [%s:%s]\n\tControl: not taken\n' "${subvendor#0x}" "${subdevice#0x}"
    [ $((${15} & 127)) -ne 1 ] || printf '\tBus: primary=%02x, secondary=%02x, subordinate=%02x\n' "${25}" "${26}" "${27}"
    regions "$device"
    [ $# -ge 256 ] || { printf '\tCapabilities: <access denied>\n'; return; }
    next=${53} left=48
    while [ "$next" -ge 64 ] && [ "$left" -gt 0 ]; do
        eval "capability=\${$((next + 1))} flags=\${$((next + 3)):-0} after=\${$((next + 2)):-0}"
        [ "$capability" -ne 16 ] || { printf '\tCapabilities: [%x] Express %s\n' "$next" "$(port_type $((flags >> 4)))"; return; }
        next=$((after & 252)) left=$((left - 1))
    done
}

port_type() {
    case $1 in
        0) echo "Endpoint" ;; 1) echo "Legacy Endpoint" ;; 4) echo "Root Port" ;; 5) echo "Upstream Port" ;; 6) echo "Downstream Port" ;;
        7) echo "PCI-Express to PCI/PCI-X Bridge" ;; 8) echo "PCI/PCI-X to PCI-Express Bridge" ;;
        9) echo "Root Complex Integrated Endpoint" ;; 10) echo "Root Complex Event Collector" ;; *) echo "Unknown type" ;;
    esac
}

# Base address registers: the first six lines of `resource` are start, last byte and the kernel's flags.
regions() {
    number=0
    while [ "$number" -lt 6 ] && read -r start end flags; do
        size=$((end - start + 1)) unit=
        if [ $((flags & 0x300)) -ne 0 ] && [ "$size" -gt 0 ]; then
            for larger in K M G T; do
                [ $((size % 1024)) -eq 0 ] || break
                size=$((size / 1024)) unit=$larger
            done
            address=$(printf %x $((start)))
            if [ $((start)) -eq 0 ] || [ $((flags & 0x20000000)) -ne 0 ]; then address="<unassigned>"; fi
            width=32 prefetchable=non-prefetchable
            [ $((flags & 0x100000)) -eq 0 ] || width=64
            [ $((flags & 0x2000)) -eq 0 ] || prefetchable=prefetchable
            if [ $((flags & 0x100)) -ne 0 ]; then
                printf '\tRegion %d: I/O ports at %s [size=%d%s]\n' "$number" "$address" "$size" "$unit"
            else
                printf '\tRegion %d: Memory at %s (%s-bit, %s) [size=%d%s]\n' "$number" "$address" "$width" "$prefetchable" "$size" "$unit"
            fi
        fi
        number=$((number + 1))
    done < "$1/resource"
}

# Capability registers of the remapping units, in the kernel log's words.
units() {
    for unit in "$root"/sys/class/iommu/*/intel-iommu; do
        [ -r "$unit/cap" ] && echo "DMAR: reg_base_addr $(cat "$unit/address") ver $(cat "$unit/version")" \
            "cap $(cat "$unit/cap") ecap $(cat "$unit/ecap")"
    done
    for unit in "$root"/sys/class/iommu/*/amd-iommu; do
        [ -r "$unit/cap" ] && echo "AMD-Vi: unit with cap $(cat "$unit/cap")"
    done
}

iommu_groups() {
    for device in "$root"/sys/kernel/iommu_groups/*/devices/*; do
        [ -e "$device" ] && group=${device%/devices/*} && echo "group ${group##*/}: ${device##*/}"
    done
}

keep() {  # NAME WHAT: keeps NAME if it has lines, and says so
    count=$(grep -c . "$out/$1")
    if [ "$count" -gt 0 ]; then say "took $1: $count lines, $2"; else rm "$out/$1"; say "nothing for $1: $2"; fi
}

echo "collected by hvlab on Linux $(sed 's/[^0-9.].*//' "$root/proc/sys/kernel/osrelease" 2> /dev/null)" > "$out/SOURCE.txt"
kernel_log > "$temporary/log"
allowed_words < "$temporary/log" > "$out/dmesg.txt"
[ -s "$out/dmesg.txt" ] && echo "-- end of the words that were taken" >> "$out/dmesg.txt"
keep dmesg.txt "words on memory, ACPI tables, DMAR and PCI out of $(grep -c . "$temporary/log") lines of the kernel's log; the rest was left out"
memory_map > "$out/memmap.txt" 2> /dev/null
keep memmap.txt "the firmware's memory map from /sys/firmware/memmap"
for table in DMAR IVRS MCFG APIC HPET SRAT; do
    from=$root/sys/firmware/acpi/tables/$table
    if [ ! -e "$from" ]; then
        say "no $table: this machine has no such table"
    elif cat "$from" > "$out/$table.dat" 2> /dev/null; then
        say "took $table.dat: the table, byte for byte"
    else
        rm -f "$out/$table.dat"
        say "could not read $table: only root may"
    fi
done
pci_functions > "$out/lspci.txt" 2> /dev/null
keep lspci.txt "PCI functions with their numbers, buses and BARs; no serial numbers, no names"
grep -q "access denied" "$out/lspci.txt" 2> /dev/null && say "could not read PCI capabilities, which tell what kind a bridge is: only root may"
units > "$out/iommu.txt" 2> /dev/null
keep iommu.txt "capability registers of the remapping units from /sys/class/iommu"
iommu_groups > "$out/iommu_groups.txt"
keep iommu_groups.txt "IOMMU groups from /sys/kernel/iommu_groups"
say "left out: all other ACPI tables, SMBIOS, configuration space beyond the header, host name, command line, serial numbers, MAC addresses"
grep -q BIOS-e820 "$out/dmesg.txt" 2> /dev/null || [ -s "$out/memmap.txt" ] ||
    say "NO MEMORY MAP could be read: run as root, soon after a boot"
tar --numeric-owner -C "$temporary" -cf - hvlab-machine | gzip -n > "$file" || exit 2
[ -z "${SUDO_UID:-}" ] || chown "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$file"
echo "wrote $file"
