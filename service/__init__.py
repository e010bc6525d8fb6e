"""Everything that needs no GPU, and the contract the whole house shares. Never imports torch, worker or sampler.

In the order of the data:

errors     the error tree, each class with a stable `code`
frozen     the base of our values
settings   one class, one field per environment variable (IVMIX_...)
sampling   the sampler's settings and the network calls they cost
logs       how every process logs, and with which ids
metrics    the storage's figures for Prometheus
jobs       VideoRequest -> Generation -> Job, and which state may follow which
weights    where a model's files come from, where they are, and what they must be
models     what a model can do; turns a request into a Generation or says why not
registry   models.toml: every model, and which of them are offered
queues     the names RQ knows our work by; the only place that sends
webhooks/  what is told when a job ends, to whom, signed how; no process
store      the record of every job in Redis, each change one atomic compare-and-set
keys       API keys, as hashes: who may do what
load       how busy each model is
storage/   finished videos as files or in S3, behind one protocol; what waits for one that is away
places     where the files of a job lie in the storage
manifest   what lies beside every finished video, so that its record can be rebuilt
embedded   a Valkey of our own for machines without Redis
recovery   `ivmix recover`: records from manifests
retention  ended jobs: leftovers go, and in the end record and files together
reaper     finds jobs that nobody has any more and brings them back
books      RQ's own books, kept in order
wiring     builds the clients, once, from the settings
api/       the HTTP face: app, routes, content, bodies, problems, health, contract
lifeline   ends a process whose parent is gone
heartbeat_file      a process's sign of life, for probes
courier/   the process that delivers webhooks
maintenance  reaper, retention and books as a process; one leads
supervisor all processes of one machine, for `ivmix up`
client     a small client of our own API
complaints how commands say what is wrong
key_commands  `ivmix keys`
cli        the `ivmix` command
"""
