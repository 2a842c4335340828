"""Flywheel on Kubernetes: what of it is generated from the code's own tables (``python -m deploy.k8s.generate``)."""
