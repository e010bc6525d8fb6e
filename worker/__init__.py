"""GPU worker: a parent that talks to Redis and never loads torch, and a child that keeps the models in GPU memory."""
