"""Jobs and faults at once: real processes, a nemesis that breaks them by a seed, a history, and a checker of it.

    python -m tests.faults --jobs 500 --faults 100 --seed 1

history   what everybody saw, one JSON object per line
house     every process: queue, storage, API, workers, maintenance, courier, and the wires between them
wires     a TCP proxy whose wires can be slow, silent or cut
buckets   an S3 proxy that is down, hangs, refuses or corrupts
receiver  where the webhooks go
clients   submit, poll, cancel, delete, by chance
nemesis   the faults, drawn from a seed
observer  what Redis says of every job, as it changes
aof       the same afterwards, complete, from Redis' own log
checker   the promises, judged from the history alone
report    the table
"""
