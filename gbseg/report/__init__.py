"""Tables and figures out of what training leaves behind. Import the modules by name; this package loads none."""
