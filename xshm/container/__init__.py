"""Containers: named files of labelled arrays, which describe themselves.

What a file holds byte by byte is specified in ``docs/format.md``. Here it is written and read,
whatever the header says about its values: that is for :mod:`xshm.codecs`.
"""
