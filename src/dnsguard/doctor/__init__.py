"""What `dnsguard check --system` looks at: one file a concern, each check a function from the node to findings.

Works while the daemon runs and while it does not, and changes nothing: what a check has to make (a scratch table, a pod
link to ask through) is gone when it ends, and what a killed run left, the next one removes.
"""
