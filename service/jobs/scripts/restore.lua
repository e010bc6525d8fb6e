-- Write a record again, unless it exists. One that is being deleted stays out of the lists.
-- KEYS: 1 record, 2 active jobs (from which retention takes ended ones, and the reaper those without a worker)
-- ARGV: 1 job id, 2 .. the record's fields and values
-- Returns 1 if it was written, 0 if there was one.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
if redis.call('HGET', KEYS[1], 'delete_requested') ~= 'true' then
  index(ARGV[1])
  emit(ARGV[1], 'created')
end
redis.call('SADD', KEYS[2], ARGV[1])
return 1
