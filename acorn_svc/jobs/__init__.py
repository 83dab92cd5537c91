"""Fits that outlive every process: a queue, a worker that watches, a child that computes."""
