"""The template ``executorch`` of ``qcore new-backend``: what differs from the core's own."""
