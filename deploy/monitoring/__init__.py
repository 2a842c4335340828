"""Alerts and dashboards as code. ``python -m deploy.k8s.generate`` writes them for a cluster."""
