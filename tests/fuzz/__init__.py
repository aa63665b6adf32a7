"""Fuzzing of the packet reader: `make fuzz` runs `campaign` and `guided`; tests/test_hostile.py a
short campaign and the broken packets of `broken/`."""
