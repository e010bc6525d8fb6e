-- Create a job: record, indexes, idempotency record and RQ entry. A repeated call changes nothing.
-- KEYS: 1 record, 2 queue, 3 index of all jobs, 4 index of the owner, 5 the owner's waiting jobs,
--       6 idempotency record, 7 active jobs
-- ARGV: 1 key prefix of records, 2 job id, 3 request fingerprint ("" = no idempotency key), 4 its lifetime in seconds,
--       5 most jobs in the queue, 6 most waiting jobs of the owner, 7 number n of the record's fields and values,
--       8 .. 7+n these, then RQ's commands for `run_commands`
-- Returns {'created' | 'replayed' | 'reused', job id} or {'queue_full' | 'owner_full', limit}.
local record, queue, waiting, idempotency = KEYS[1], KEYS[2], KEYS[5], KEYS[6]
local prefix, id, fingerprint, fields = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[7])

if redis.call('EXISTS', record) == 1 then return {'created', id} end
if fingerprint ~= '' then
  local known, first_id = unpack(redis.call('HMGET', idempotency, 'fingerprint', 'id'))
  if known and redis.call('EXISTS', prefix .. first_id) == 1 then
    return {known == fingerprint and 'replayed' or 'reused', first_id}
  end
end
if redis.call('LLEN', queue) >= tonumber(ARGV[5]) then return {'queue_full', ARGV[5]} end
-- Jobs that no longer wait leave the owner's set here, so that no other transition has to maintain it.
for _, other in ipairs(redis.call('SMEMBERS', waiting)) do
  if redis.call('HGET', prefix .. other, 'state') ~= QUEUED then redis.call('SREM', waiting, other) end
end
if redis.call('SCARD', waiting) >= tonumber(ARGV[6]) then return {'owner_full', ARGV[6]} end

redis.call('HSET', record, unpack(ARGV, 8, 7 + fields))
redis.call('ZADD', KEYS[3], 0, id)
redis.call('ZADD', KEYS[4], 0, id)
redis.call('SADD', waiting, id)
redis.call('SADD', KEYS[7], id)
if fingerprint ~= '' then
  redis.call('HSET', idempotency, 'fingerprint', fingerprint, 'id', id)
  redis.call('EXPIRE', idempotency, ARGV[4])
end
run_commands(8 + fields)

-- RQ has appended the job to its queue. A job of normal priority moves in front of the low ones at the end.
if redis.call('HGET', record, 'priority') ~= LOW then
  local first_low, place = nil, -2
  local other = redis.call('LINDEX', queue, place)
  while other and redis.call('HGET', prefix .. other, 'priority') == LOW do
    first_low, place = other, place - 1
    other = redis.call('LINDEX', queue, place)
  end
  if first_low then
    redis.call('RPOP', queue)
    redis.call('LINSERT', queue, 'BEFORE', first_low, id)
  end
end
return {'created', id}
