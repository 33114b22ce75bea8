"""`tue protect`: from a folder of images to protected copies."""
