"""What `scion.grow` and `scion.distill` share: one text pipeline, one loop, one checkpoint format, one way to write."""
