"""What xarray finds by itself: the engine and the accessor."""
