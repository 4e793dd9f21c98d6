/* The order in which the lab guest starts. */
#include "lab.h"

void lab_main(enum boot_kind kind, u64 info);

void lab_main(enum boot_kind kind, u64 info)
{
	trap_init();
	time_init();
	console_init();
	boot_read(kind, info);
	klog("hvlab lab guest version 1 (gcc version " __VERSION__ ")\n");
	klog("Command line: %s\n", boot.command_line);
	klog("BIOS-provided physical RAM map:\n");
	boot_print_e820(klog);
	paging_init();
	pci_scan();
	if (nvme_probe())
		disk_start();
	print("lab: ready\n");
	monitor();
}
