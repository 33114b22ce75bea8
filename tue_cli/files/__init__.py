"""Pictures, folders and manifests: Pillow and numpy, no torch."""
