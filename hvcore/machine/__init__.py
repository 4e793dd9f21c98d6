"""The PC: what would be silicon or ROM.  Nothing here knows of a hypervisor's policy or of display."""
