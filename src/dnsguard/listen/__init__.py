"""Where pods' queries arrive: one transparent UDP socket and one TCP listener a family.

Packets that TPROXY brought go in; `on_query(packet, source, link, client)` comes out, and `client.reply` takes the way
back. Nothing here reads a DNS message beyond its length.
"""
