-- Create jobs of one owner for one queue, all or none: records, indexes, idempotency record and RQ entries. A repeated
-- call changes nothing.
-- KEYS: 1 queue, 2 the owner's waiting jobs, 3 idempotency record, 4 active jobs
-- ARGV: 1 request fingerprint ("" = no idempotency key), 2 its lifetime in seconds, 3 most jobs in the queue, 4 most
--       waiting jobs of the owner, 5 number of jobs, 6 most GPU time of the owner per day in ms (0 = no limit), 7 what
--       these jobs are expected to take of it; then of each job its id, number of the record's fields and values,
--       these, number of parts of RQ's commands, and these for `run_commands`
-- Returns {'created' | 'replayed' | 'reused', job ids}, {'queue_full' | 'owner_full', limit}, or {'quota', GPU time used
-- today, GPU time that unended jobs are expected to take, seconds until the day ends}. Deleted jobs of an earlier request
-- are not returned; if all are deleted, it is as if it had never been sent.
local queue, waiting, idempotency = KEYS[1], KEYS[2], KEYS[3]
local fingerprint, count = ARGV[1], tonumber(ARGV[5])

local jobs, ids, at = {}, {}, 8
for i = 1, count do
  local first = at + 2
  local parts = first + tonumber(ARGV[at + 1])
  jobs[i] = {id = ARGV[at], first = first, last = parts - 1, commands = parts + 1, ends = parts + tonumber(ARGV[parts])}
  ids[i], at = ARGV[at], jobs[i].ends + 1
end
ids = table.concat(ids, ' ')

-- Return those of the ids that clients can still see.
local function shown(all)
  local found = {}
  for id in string.gmatch(all, '%S+') do
    local is_there = redis.call('EXISTS', RECORD .. id) == 1
    if is_there and redis.pcall('HGET', RECORD .. id, 'delete_requested') ~= 'true' then found[#found + 1] = id end
  end
  return found
end

-- Return the owner (JSON) of a new job.
local function owner_of(job)
  for i = job.first, job.last, 2 do
    if ARGV[i] == 'owner' then return ARGV[i + 1] end
  end
end

if redis.call('EXISTS', RECORD .. jobs[1].id) == 1 then return {'created', ids} end
if fingerprint ~= '' then
  local known, first_id, all = unpack(redis.call('HMGET', idempotency, 'fingerprint', 'id', 'ids'))
  local earlier = known and first_id and shown(all or first_id) or {}
  if #earlier > 0 then return {known == fingerprint and 'replayed' or 'reused', table.concat(earlier, ' ')} end
end
if redis.call('LLEN', queue) + count > tonumber(ARGV[3]) then return {'queue_full', ARGV[3]} end
-- Jobs that no longer wait leave the owner's set here, so that no other transition has to maintain it.
for _, other in ipairs(redis.call('SMEMBERS', waiting)) do
  if redis.pcall('HGET', RECORD .. other, 'state') ~= QUEUED then redis.call('SREM', waiting, other) end
end
if redis.call('SCARD', waiting) + count > tonumber(ARGV[4]) then return {'owner_full', ARGV[4]} end
local quota_ms = tonumber(ARGV[6])
if quota_ms > 0 then
  local used, expected, rest_of_day_s = quota_state(owner_of(jobs[1]), waiting)
  if used >= quota_ms or used + expected + tonumber(ARGV[7]) > quota_ms then
    return {'quota', used .. ' ' .. expected .. ' ' .. rest_of_day_s}
  end
end

for _, job in ipairs(jobs) do
  local id, record = job.id, RECORD .. job.id
  redis.call('HSET', record, unpack(ARGV, job.first, job.last))
  index(id)
  emit(id, 'created')
  redis.call('SADD', waiting, id)
  redis.call('SADD', KEYS[4], id)
  run_commands(job.commands, job.ends)

  -- RQ has appended the job to its queue; it moves to where it takes its turn.
  redis.call('RPOP', queue)
  local owner, priority = unpack(redis.call('HMGET', record, 'owner', 'priority'))
  local queued, lanes, first_low = lanes_in(queue)
  local place = place_among(lanes, first_low, owner, priority == LOW)
  if queued[place] then
    redis.call('LINSERT', queue, 'BEFORE', queued[place], id)
  else
    redis.call('RPUSH', queue, id)
  end
end
if fingerprint ~= '' then
  redis.call('DEL', idempotency)
  redis.call('HSET', idempotency, 'fingerprint', fingerprint, 'id', jobs[1].id)
  if count > 1 then redis.call('HSET', idempotency, 'ids', ids) end
  redis.call('EXPIRE', idempotency, ARGV[2])
end
return {'created', ids}
