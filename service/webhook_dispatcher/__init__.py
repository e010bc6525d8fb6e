"""The process that delivers webhooks: `ivmix webhooks`. No GPU, no torch; any number of them may run.

pump      moves what is due: from the outbox to deliveries, from the schedule to the queue
attempts  one attempt at one delivery, and what follows from it
metrics   its figures for Prometheus
workers   RQ workers, as threads
tasks     what RQ calls by name
running   all of it together, until it is told to stop
"""
