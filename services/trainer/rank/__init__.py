"""Training by several processes at once, one GPU each.

The worker is rank 0: it alone speaks the protocol, fetches, prepares and saves. It starts the other ranks, which do
nothing but train with it, each on its share of every step (:mod:`services.trainer.schedule`), and exchange gradients by
torch.distributed under accelerate. All end together: the others with their parent, the worker with any of them, and the
trainer then starts anew.
"""
