"""What is done to a drive where the drive is: its facts, reading and hashing, freezing, writing, checking.

These modules run in two places. Here, for files and drives of this machine, their functions are called. On a device they arrive over SSH as
text and serve requests on standard input and output, so nothing is installed there. Hence: Python 3.8's standard library only, and no import
of ours but of one another.

They decide nothing: what is compared with what, whether an image may be written, belongs to `capture` and `reflash`.
"""
