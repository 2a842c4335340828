"""Tests of the images: built for real with buildah, and run as ``compose.yaml`` says. Slow: ``make images-test``."""
