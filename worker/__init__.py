"""One process pair per GPU: a parent that talks to Redis and never loads torch, a child that keeps the models in VRAM.

__main__     settings -> parent and child -> work until told to stop
rq_worker    the parent's RQ side; every override of RQ in one place
tasks        what RQ calls by name: generate(job_id)
runner       the story of one job as the parent sees it: take it, have it worked on, write down how it ended
watch        the parent while the child works: lease, cancel, drain, a child that hangs
resident     the parent's handle on the child: start, talk, kill
messages     what the two say to each other
child        the child's main loop
keeper       the latest state of a job, in the storage, for whoever goes on
engine       prompt -> frames: encode, sample, decode
checkpoint   the state of a run between two steps, and its file
fingerprint  what a checkpoint is the state of
failures     what went wrong, in the words of the job's record
models       a model folder -> encode, denoisers, decode; the only file that knows diffusers and transformers
video        frames -> mp4, thumbnail, spritesheet
generate     `ivmix generate`: the engine without server, queue and storage
"""
