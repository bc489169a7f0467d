"""Commands of ``qcore``, found by entry point. What they import at the top is light."""
