"""How permitted queries reach the configured resolvers, over UDP and TCP."""
