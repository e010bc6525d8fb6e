"""Webhooks without the process that sends them: what is told, to whom, signed how, and how far it got.

outbox      events of ended jobs, written in the transaction that ends them
signature   secrets, and the signature of Standard Webhooks
addresses   which network addresses may be reached
receivers   which URLs may be told, and where they lie
sender      one signed POST to one receiver
schedule    what follows from an attempt: delivered, again later, or never
endpoints   the receivers that an owner has registered
deliveries  one event on its way to one receiver
"""
