"""``deploy/k8s`` applied to a real Kubernetes API server: what it accepts, what it does with it, and what it refuses.

The control plane is real (etcd, API server, controller manager, scheduler), and so are the definitions of the
operators' kinds. Nodes are played by kwok, and what operators would make by us: :mod:`tests.cluster.nodes`,
:mod:`tests.cluster.operators`, :mod:`tests.cluster.operands`.
"""
