"""Pages from the network, without letting them reach what is inside it."""
