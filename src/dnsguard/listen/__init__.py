"""Where pods' queries arrive: one transparent UDP socket and one TCP listener a family."""
