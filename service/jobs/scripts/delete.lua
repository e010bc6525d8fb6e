-- Delete the record of an ended job and its index entries.
-- KEYS: 1 record, 2 index of all jobs, 3 index of the owner, 4 RQ's record
-- ARGV: 1 job id, 2 seconds until RQ's record expires (its worker may have been killed before it could close it),
--       3 '1' = in any state, because the record is damaged
-- Returns 1 if it was deleted, else 0.
if ARGV[3] == '1' then
  leave_all(ARGV[1])
elseif not ENDED[redis.call('HGET', KEYS[1], 'state')] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('EXPIRE', KEYS[4], ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
