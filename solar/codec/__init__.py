"""The codec: factors by layer in, the bytes of one file out, and back.

factors  the gauge an update is coded in      bound      what is proved about the error, checked
basis    atoms both ends can rebuild, by kinds limit      the fewest bytes any such code needs
select   coefficients and which are kept      alignment  how much of an update its base predicts
quantize numbers to bytes                     baselines  plain factors in the same file
solar    the walk from factors to a file      packet     the file: decode, inspect, read, write
checksum whether both ends built one basis    container  its bytes
"""
