"""Exporting training sets: read back with torchvision, tarfile and pyarrow."""
