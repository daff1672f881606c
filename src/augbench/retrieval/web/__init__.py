"""The web as a source of images: URLs that nobody has vetted, fetched within limits, each with one fate, kept in a file that survives ``kill -9``.

Flows in: URLs and :class:`~augbench.retrieval.web.fates.Limits`. Flows out: a row per URL in a :class:`~augbench.retrieval.web.cache.Cache` (its
fate; for images that were fetched, the original file's bytes), and the same rows as objects. :func:`~augbench.retrieval.web.download.download` does it.

What answers at such a URL may be gone, slow, endless, a decompression bomb, a redirect into the local network: ``addresses`` guards where a
connection may lead, ``fetch`` what one URL may cost, ``content`` what is decoded.

Why not img2dataset, which clip-retrieval suggests: version 1.47 opens ``file://`` addresses, reads answers without a limit on their bytes, follows
redirects wherever they lead, decodes an image before it looks at its size, and starts a shard over after a crash.
"""
