"""Key providers behind one interface, chosen in the composition root."""
