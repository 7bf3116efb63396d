"""OPV2V as it lies on disk: where every file is, what is in it, what can be wrong with it, and how to generate one."""
