"""Which names justify each lease, kept on disk beside the kernel's leases, for the next process.

In: the leases' touched pairs of lease and name, twenty times a second. Out: `names.sqlite` in the runtime directory,
written by a thread of its own, and at the next start what it says, checked. Never: a wait for a query, trust in the
file. Without it, or with a damaged one, leases are restored with names unknown.

    content.py    what the file holds: its tables, read and checked
    store.py      the file open for writing: one batch of changes, one transaction
    writer.py     the thread, and what becomes of a file that cannot be written
    keeping.py    what the daemon sees: read, begin, tick, close
"""
