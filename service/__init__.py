"""Everything that needs no GPU, and the contract the whole house shares. Never imports torch, worker or sampler.

In the order of the data:

errors     the error tree, each class with a stable `code`
settings   one class, one field per environment variable (IVMIX_...)
jobs       VideoRequest -> Generation -> Job, and which state may follow which
models     what the installed models can do; turns a request into a Generation or says why not
queues     the names RQ knows our work by; the only place that sends
store      the record of every job in Redis, each change one atomic compare-and-set
places     where the files of a job lie in the storage
storage    finished videos as files or in S3, behind one protocol
embedded   a Valkey of our own for machines without Redis
retention  ended jobs: leftovers go, and in the end record and files together
reaper     finds jobs that nobody has any more and brings them back
books      RQ's own books, kept in order
wiring     builds the clients, once, from the settings
api/       the HTTP face: app, routes, content, bodies, problems, health, contract
lifeline   ends a process whose parent is gone
maintenance  reaper, retention and books as a process; one leads
supervisor all processes of one machine, for `ivmix up`
client     a small client of our own API
cli        the `ivmix` command
"""
