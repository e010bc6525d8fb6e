-- Claim deliveries, fairly among owners. What is due first moves into its owner's queue. Then, one at a time, the owner
-- with the fewest attempts in progress gets the next one, as long as those are fewer than half of what is free (or it
-- has only one, so that one silent receiver does not delay an owner's others). So an owner whose receivers are silent
-- never takes all of a dispatcher, however many deliveries it has.
-- A delivery stays in the due set while it is queued or claimed, so a dispatcher that dies loses nothing.
-- KEYS: due set, owners with a queue (scored by when each was last served).
-- ARGV: now, when a claim expires, attempts that may be in progress, prefix of record keys, prefix of queue keys,
--   then each owner with attempts in progress, and their number.
-- Returns id, attempts made, owner, id, attempts made, owner, ...
local MOVED_AT_ONCE = 2000  -- bounds how long one call blocks Redis
local ENDED = {['"delivered"'] = true, ['"failed"'] = true}
local now, expires, free, record, queue = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local busy = {}
for i = 6, #ARGV, 2 do
  busy[ARGV[i]] = tonumber(ARGV[i + 1])
  free = free - busy[ARGV[i]]
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, MOVED_AT_ONCE)) do
  local owner, attempts, state = unpack(redis.pcall('HMGET', record .. id, 'owner', 'attempts', 'state'))
  local is_readable, name = pcall(cjson.decode, owner)
  if not ENDED[state] and is_readable and type(name) == 'string' and attempts and string.find(attempts, '^%d+$') then
    owner = name
    redis.call('ZADD', queue .. owner, 'NX', ARGV[1], id)
    redis.call('ZADD', KEYS[2], 'NX', 0, owner)
    redis.call('ZADD', KEYS[1], expires, id)
  else  -- the record has expired or is damaged, or a restore has made due again what has ended
    redis.call('ZREM', KEYS[1], id)
  end
end

local owners = redis.call('ZRANGE', KEYS[2], 0, -1)

local function may_have_another(count)
  return count == 0 or count < free / 2 or (count == 1 and free > 1)
end

local function next_owner()
  local least = nil
  for _, owner in ipairs(owners) do  -- of equally busy ones, the one that was served longest ago
    local count = busy[owner] or 0
    if may_have_another(count) and (least == nil or count < (busy[least] or 0)) then least = owner end
  end
  return least
end

local claimed = {}
while free > 0 do
  local owner = next_owner()
  if owner == nil then break end
  local id = redis.call('ZPOPMIN', queue .. owner)[1]
  if id == nil then
    redis.call('ZREM', KEYS[2], owner)
    owners = redis.call('ZRANGE', KEYS[2], 0, -1)
  else
    local attempts = redis.call('HGET', record .. id, 'attempts')
    if attempts and redis.call('ZSCORE', KEYS[1], id) then  -- otherwise it has ended meanwhile
      redis.call('ZADD', KEYS[1], expires, id)
      redis.call('ZADD', KEYS[2], string.format('%.6f', now + #claimed * 1e-6), owner)
      busy[owner], free = (busy[owner] or 0) + 1, free - 1
      for _, part in ipairs({id, attempts, owner}) do table.insert(claimed, part) end
    end
  end
end
return claimed
