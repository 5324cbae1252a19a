"""Fast implementations of the losses, one file a device."""
