"""The agent: the one program that touches disks, file-system freezes and change trackers.

It runs on Python 2.7 and 3.6 to 3.14 with nothing but the standard library, from one zip file, and speaks
the protocol of ``docs/reference/agent-protocol.md`` on standard input and output. It imports nothing else of
the library. Types stand in comments, as Python 2.7 knows no annotations.
"""

# The library's own version: a test compares the two.
VERSION = "0.1.0.dev0"
