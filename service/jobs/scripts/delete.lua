-- Delete the record of an ended job and its index entries.
-- KEYS: 1 record, 2 index of all jobs, 3 RQ's record
-- ARGV: 1 job id, 2 key prefix of the owners' indexes,
--       3 seconds until RQ's record expires (its worker may have been killed before it could close it)
-- Returns the deleted record as HGETALL does, empty if nothing was deleted.
local state, owner = unpack(redis.call('HMGET', KEYS[1], 'state', 'owner'))
if not ENDED[state] then return {} end
local record = redis.call('HGETALL', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('EXPIRE', KEYS[3], ARGV[3])
redis.call('ZREM', KEYS[2], ARGV[1])
if owner then redis.call('ZREM', ARGV[2] .. cjson.decode(owner), ARGV[1]) end
return record
