-- Create a job: record, indexes, idempotency record and RQ entry. A repeated call changes nothing.
-- KEYS: 1 record, 2 queue, 3 the owner's waiting jobs, 4 idempotency record, 5 active jobs
-- ARGV: 1 job id, 2 request fingerprint ("" = no idempotency key), 3 its lifetime in seconds, 4 most jobs in the
--       queue, 5 most waiting jobs of the owner, 6 number n of the record's fields and values, 7 .. 6+n these, then
--       RQ's commands for `run_commands`
-- Returns {'created' | 'replayed' | 'reused', job id} or {'queue_full' | 'owner_full', limit}.
local record, queue, waiting, idempotency = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, fingerprint, fields = ARGV[1], ARGV[2], tonumber(ARGV[6])

if redis.call('EXISTS', record) == 1 then return {'created', id} end
if fingerprint ~= '' then
  local known, first_id = unpack(redis.call('HMGET', idempotency, 'fingerprint', 'id'))
  local is_there = known and first_id and redis.call('EXISTS', RECORD .. first_id) == 1
  if is_there and redis.pcall('HGET', RECORD .. first_id, 'delete_requested') ~= 'true' then
    return {known == fingerprint and 'replayed' or 'reused', first_id}
  end
end
if redis.call('LLEN', queue) >= tonumber(ARGV[4]) then return {'queue_full', ARGV[4]} end
-- Jobs that no longer wait leave the owner's set here, so that no other transition has to maintain it.
for _, other in ipairs(redis.call('SMEMBERS', waiting)) do
  if redis.pcall('HGET', RECORD .. other, 'state') ~= QUEUED then redis.call('SREM', waiting, other) end
end
if redis.call('SCARD', waiting) >= tonumber(ARGV[5]) then return {'owner_full', ARGV[5]} end

redis.call('HSET', record, unpack(ARGV, 7, 6 + fields))
index(id)
emit(id, 'created')
redis.call('SADD', waiting, id)
redis.call('SADD', KEYS[5], id)
if fingerprint ~= '' then
  redis.call('HSET', idempotency, 'fingerprint', fingerprint, 'id', id)
  redis.call('EXPIRE', idempotency, ARGV[3])
end
run_commands(7 + fields)

-- RQ has appended the job to its queue; it moves to where it takes its turn.
redis.call('RPOP', queue)
local owner, priority = unpack(redis.call('HMGET', record, 'owner', 'priority'))
local ids, lanes, first_low = lanes_in(queue)
local place = place_among(lanes, first_low, owner, priority == LOW)
if ids[place] then
  redis.call('LINSERT', queue, 'BEFORE', ids[place], id)
else
  redis.call('RPUSH', queue, id)
end
return {'created', id}
