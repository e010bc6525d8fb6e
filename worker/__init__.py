"""One process pair per GPU: a parent that talks to Redis and never loads torch, a child that keeps the models in VRAM.

__main__     settings -> parent and child -> work until told to stop
rq_worker    the parent's RQ side; every override of RQ in one place
tasks        what RQ calls by name: generate(job_id)
runner       the story of one job as the parent sees it: take it, have it worked on, write down how it ended
watch        the parent while the child works: lease, cancel, drain, a child that hangs
resident     the parent's handle on the child: start, talk, kill
metrics      figures for Prometheus, read off what parent and child say
messages     what the two say to each other
child        the child's main loop
keeper       the latest state of a job, in the storage, for whoever goes on
delivery     frames -> files -> storage, and what earlier executions left of them
scratch      finished files on this machine's disk until they are stored
engine       prompt -> frames: encode, sample, decode
checkpoint   the state of a run between two steps, and its file
fingerprint  what a checkpoint is the state of
failures     what went wrong, in the words of the job's record
models       a model by name -> encode, denoisers, decode
components   one component's files -> a network, its weights compared with its configuration first
text         tokenizer and text encoder
videocrafter the one network that diffusers does not have
fetch        `ivmix models fetch`: files from a hub; no torch
verify       `ivmix models verify`: sha256, names and shapes, without loading
video        frames -> mp4, thumbnail, spritesheet
generate     `ivmix generate`: the engine without server, queue and storage
"""
