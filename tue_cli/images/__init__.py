"""One image: decoding, encoding, metadata and quality; no torch."""
