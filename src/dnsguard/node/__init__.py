"""What the node knows: links, routes, and conntrack's flows."""
