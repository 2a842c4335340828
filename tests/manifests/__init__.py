"""Tests of what ``deploy/k8s`` says: it builds, fits the schemas, keeps the house's rules and agrees with the code."""
