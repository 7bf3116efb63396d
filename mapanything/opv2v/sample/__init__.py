"""A synthetic OPV2V data set with the real rig, for demo, debugging and tests: `writer.write_sample` makes one."""
