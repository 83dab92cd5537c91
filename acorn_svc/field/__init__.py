"""The mathematics of a field: arrays in, arrays out, no files, clocks or globals."""
