"""The suites that stand on the kernel, in virtual machines that run Debian's older ones.

In: kernels from the Debian archive, the tests of this repository, the machine's own file system. Out: one line for
each kernel and suite, the log of what failed, the rows of docs/kernels.md. Nothing outside `.cache/` and that page is
written, and no virtual machine outlives the run.
"""
