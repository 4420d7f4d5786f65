"""What dask finds by itself: the comm `shm://` and the serializer of NumPy arrays."""
