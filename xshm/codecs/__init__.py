"""Values as JSON and raw buffers, and back, without pickle.

Everything here works on two things only: JSON values (what :mod:`json` reads and writes, with
no NaN among them), and :class:`~xshm.codecs.buffers.Buffers`, to which an encoder adds the
bytes of arrays and of which a decoder asks for them again by number.
"""
