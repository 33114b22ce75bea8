"""Folders of images: discovering, labelling, manifests and matching; no torch."""
