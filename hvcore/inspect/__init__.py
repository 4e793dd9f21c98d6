"""Pure readers: everything shown of a machine is read from its memory and registers, and comes as records that display themselves."""
