"""How permitted queries reach the configured resolvers, over UDP and TCP.

In come attempts (`engine.contracts.Attempt`: a server's number and a DNS message without its ID); out go `answered` and
`failed`. This room chooses source ports and IDs, matches answers to questions and probes failed servers. It never
decides which server is next, never looks behind the question section of an answer, and never retries over UDP.
"""
