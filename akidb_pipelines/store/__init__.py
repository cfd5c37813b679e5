"""The artifact store: content-addressed blobs, immutable releases, channels that point at one of them."""
