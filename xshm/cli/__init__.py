"""The command line: ``xshm ls``, ``info``, ``rm``, ``gc`` and ``df``."""
