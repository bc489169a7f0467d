"""Two extensions of qcore: one times every hook, one vetoes schemes."""
