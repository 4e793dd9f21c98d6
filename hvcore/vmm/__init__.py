"""The hypervisor core, modelled on BitVisor.  It reaches the machine only by memory, MMIO, port I/O and VMCB."""
