"""xarray's objects as the contents of a container, and made of one again."""
