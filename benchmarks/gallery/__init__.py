"""``make gallery``: pictures that explain, each computed by the code that it explains, or drawn from records."""
