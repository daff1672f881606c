"""Download images from untrusted URLs, within limits, into a cache that survives ``kill -9``.

Entry point: :func:`~augbench.retrieval.web.download.download`. Input: URLs and
:class:`~augbench.retrieval.web.fates.Limits`. Output: one row per URL in a
:class:`~augbench.retrieval.web.cache.Cache` with its fate and, for a fetched image, the bytes of the
original file; the same rows are returned as objects.

A URL may be dead, slow, endless, a decompression bomb, or a redirect into the local network. ``addresses``
limits where a connection may lead, ``fetch`` limits the cost of one URL, and ``content`` limits what is
decoded.

Why not img2dataset, which clip-retrieval suggests: version 1.47 opens ``file://`` addresses, reads answers
without a size limit, follows redirects anywhere, decodes an image before it checks the size, and restarts a
shard from the beginning after a crash.
"""
